"""What --dataset names: registered datasets, hubs' names, numbers of rows; and who the answers say they are."""

from __future__ import annotations

import datasets
import pytest

from llmtune.data.info import DatasetInfo, register_dataset
from llmtune.data.items import DatasetItem, HubItem, check_source, parse_hub_source, parse_item, split_items
from llmtune.data.loading import load_source
from llmtune.data.row_cache import fill_identity
from llmtune.errors import DataError, UnknownKeyError, UsageError
from llmtune.types import ToolCall

from .made import conversations_of, turns, write

ROWS = [{"query": f"q{n}", "response": f"r{n}"} for n in range(5)]
BOTH = [turns(f"q{n}", f"r{n}") for n in range(5)]
register_dataset("t-list", lambda: ROWS)
register_dataset("t-dataset", lambda: datasets.Dataset.from_list(ROWS))
register_dataset("t-pair", lambda: (ROWS, datasets.Dataset.from_list(ROWS[:2])))
register_dataset(
    "t-columns", DatasetInfo(get_function=lambda: [{"a": "q", "b": "r"}], columns={"a": "query", "b": "response"})
)
register_dataset("t-wrong", lambda: {"a": 1})
register_dataset("t-wrong-row", lambda: [1])


@pytest.mark.parametrize("key", ["t-list", "t-dataset"])
def test_every_kind_of_registered_function_gives_its_rows(key):
    loaded = load_source(key)
    assert conversations_of(loaded.train) == BOTH
    assert loaded.validation is None
    assert loaded.train._fingerprint == load_source("t-list").train._fingerprint


def test_registered_pair_and_columns():
    loaded = load_source("t-pair")
    assert conversations_of(loaded.train) == BOTH
    assert loaded.validation is not None
    assert conversations_of(loaded.validation) == BOTH[:2]
    assert loaded.validation_report is not None
    assert loaded.validation_report.rows_kept == 2
    assert conversations_of(load_source("t-columns").train) == [turns("q", "r")]


@pytest.mark.parametrize("key", ["t-wrong", "t-wrong-row"])
def test_a_wrong_function_is_named_by_its_dataset(key):
    with pytest.raises(DataError, match=key):
        load_source(key)


def test_a_registered_path_ships_its_validation_part(tmp_path):
    train = write(tmp_path / "train.jsonl", [{"a": "q", "response": "r"}])
    val = write(tmp_path / "val.jsonl", [{"a": "q2", "response": "r2"}])
    register_dataset("t-path", DatasetInfo(path=train, val_path=val, columns={"a": "query"}), replace=True)
    loaded = load_source("t-path")
    assert conversations_of(loaded.train) == [turns("q", "r")]
    assert loaded.validation is not None
    assert conversations_of(loaded.validation) == [turns("q2", "r2")]


def test_arrow_padding_in_a_dataset():
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]}
    register_dataset("t-padded", lambda: datasets.Dataset.from_list([row]), replace=True)
    found = conversations_of(load_source("t-padded").train)[0]
    assert found.messages[1].tool_calls == (ToolCall("f", {"x": 1}), ToolCall("g", {"y": 2}))


# Names


def test_an_item_splits_at_its_number_of_rows(tmp_path):
    assert parse_item("key") == DatasetItem("key")
    assert parse_item(" key#1000 ") == DatasetItem("key", 1000)
    odd = tmp_path / "a#5"
    assert parse_item(str(odd)) == DatasetItem(str(tmp_path / "a"), 5)
    odd.write_text("")
    assert parse_item(str(odd)) == DatasetItem(str(odd))
    assert parse_item(f"{odd}#7") == DatasetItem(str(odd), 7)


def test_hub_names_are_parsed():
    assert parse_item("ms::a/b") == DatasetItem("ms::a/b")
    assert parse_item("hf::a/b.c:d-e#10") == DatasetItem("hf::a/b.c:d-e", 10)
    assert parse_hub_source("ms::a/b") == HubItem("ms", "a/b")
    assert parse_hub_source("hf::a/b.c:d-e") == HubItem("hf", "a/b.c", "d-e")
    assert parse_hub_source("hf::squad") == HubItem("hf", "squad")
    check_source("ms::no/such")  # the hub is not asked
    assert split_items("ms::a/b:c#5,tiny-qa") == ["ms::a/b:c#5", "tiny-qa"]


@pytest.mark.parametrize("text", ["ms::a", "ms::", "hf::a/b/c", "hf::a/b:", "ms::/b", "hf::a b/c"])
def test_a_malformed_hub_name_shows_the_right_form(text):
    with pytest.raises(UsageError, match=f"expected {text[:4]}org/name"):
        check_source(text)


@pytest.mark.parametrize("text", ["key#0", "key#x", "key#", "#5", "key#-1", "key#1.5", "", "key#²", "ms::a/b#0"])
def test_a_malformed_number_of_rows_is_refused(text):
    with pytest.raises(UsageError):
        parse_item(text)


def test_unknown_names_suggest_the_nearest(tmp_path):
    write(tmp_path / "alpaca.jsonl", [{"query": "q", "response": "r"}])
    with pytest.raises(UnknownKeyError, match="Did you mean 't-list'"):
        load_source("t-lst")
    with pytest.raises(DataError, match=r"Did you mean .*alpaca\.jsonl\?"):
        load_source(str(tmp_path / "alpca.jsonl"))
    with pytest.raises(DataError, match="does not exist"):
        load_source("nowhere.jsonl")


# Identity


def test_names_and_authors_fill_their_placeholders(assets):
    train = load_source(str(assets / "data" / "self_cognition.jsonl")).train
    filled, changed = fill_identity(train, ["小黄", "Tiny {{AUTHOR}}"], ["魔搭", "ModelScope"])
    assert (changed, len(filled)) == (70, 142)
    before, after = conversations_of(train), conversations_of(filled)
    assert after[0].messages[1].content == before[0].messages[1].content.replace("{{NAME}}", "小黄").replace(
        "{{AUTHOR}}", "魔搭"
    )
    english = [one for one in after if one.messages[0].content.isascii()]
    assert any("Tiny {{AUTHOR}}" in one.messages[1].content for one in english)  # a name is not filled in turn
    assert not any("小黄" in one.messages[1].content for one in english)
    assert not any("{{NAME}}" in message.content for one in after for message in one.messages)
    again, _ = fill_identity(train, ["小黄", "Tiny {{AUTHOR}}"], ["魔搭", "ModelScope"])
    assert again._fingerprint == filled._fingerprint != train._fingerprint


def test_fill_identity_in_selected_rows():
    rows = [{"query": "who", "response": "{{NAME}} by {{AUTHOR}}"}, {"query": "q", "response": "r"}]
    register_dataset("t-identity", lambda: rows, replace=True)
    train = load_source("t-identity").train
    filled, changed = fill_identity(train, "Name")
    assert (changed, filled[0]["messages"][1]["content"]) == (1, "Name by {{AUTHOR}}")
    same, changed = fill_identity(train.select([1]), ["Name"], ["Author"])
    assert (changed, len(same)) == (0, 1)
    assert fill_identity(train)[0] is train
    with pytest.raises(UsageError, match="--model_name takes one or two"):
        fill_identity(train, ["a", "b", "c"])
