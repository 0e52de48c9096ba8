"""Every file of the shared data, and what happens to bad rows."""

from __future__ import annotations

import json

import pytest

from llmtune.data.canonical import SCHEMA, from_record
from llmtune.data.loading import load_source
from llmtune.data.streaming import RecordStream
from llmtune.errors import DataError
from llmtune.types import Conversation, Message, ToolCall
from llmtune.utils.files import cache_root

from .made import conversations_of, turns, write

IMAGE = "https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen-VL/assets/demo.jpeg"


def text(content: str) -> Conversation:
    return Conversation((Message("assistant", content, True),))


MULTI = ("AAAAA", "BBBBB", "CCCCC", "DDDDD")
CHATML = [
    turns("11111", "22222", system="00000"),
    turns("aaaaa", "bbbbb", "ccccc", "ddddd"),
    turns("AAAAA", "BBBBB", "CCCCC", "DDDDD"),
]
SWIFT_MULTI = [
    turns("55555", "66666", system="00000"),
    turns("eeeee", "fffff"),
    turns(*MULTI, "EEEEE", "FFFFF", only_last=True),
]
SINGLE = [turns("11111", "22222", system="00000"), turns("aaaaa", "bbbbb"), turns("AAAAA", "BBBBB")]
PRE = [text("11111"), text("aaaaa"), text("AAAAA")]
SMALL = {
    "alpaca.csv": [
        turns("11111\n22222", "3.3", system="00000"),
        turns("aaaaa", "ccccc"),
        turns("AAAAA\nBBBBB", "CCCCC"),
    ],
    "alpaca.jsonl": [
        turns("aaaaa", "bbbbb", "11111\n22222", "33333", system="system123", only_last=True),
        turns("aaaaa", "ccccc"),
        turns("AAAAA\nBBBBB", "CCCCC"),
    ],
    "alpaca2.csv": [turns("11111", "33333"), turns("aaaaa", "ccccc"), turns("AAAAA", "CCCCC")],
    "chatml.jsonl": CHATML,
    "conversations.jsonl": CHATML,
    "multi_modal_3.jsonl": [
        turns("55555", "66666", images=(IMAGE,)),
        turns("eeeee", "fffff", images=(IMAGE,)),
        turns(*MULTI, "EEEEE", "FFFFF", only_last=True, images=(IMAGE,)),
    ],
    "sharegpt.jsonl": [
        turns("11111", "22222", system="00000"),
        turns("aaaaa", "bbbbb"),
        turns(*MULTI, "EEEEE", "FFFFF"),
    ],
    "swift_multi.json": SWIFT_MULTI,
    "swift_multi.jsonl": SWIFT_MULTI,
    "swift_pre.csv": PRE,
    "swift_pre.jsonl": PRE,
    "swift_single.csv": SINGLE,
    "swift_single.jsonl": SINGLE,
}
LABELLED_FALSE = {"kto_en_demo.json": 150}
TANG = "以下是一首唐詩的第一句話，請用你的知識判斷並完成整首詩。\n"
# File: rows, shapes, first row: roles and the beginning of each content, last row likewise.
LARGE = {
    "alpaca_en_demo.json": (999, "alpaca", "ua", ["Describe a process of making crepes.", "Making crepes is an easy"]),
    "alpaca_zh_demo.json": (1000, "alpaca", "ua", ["识别并解释给定列表中的两个", "细胞理论是生物科学"]),
    "c4_demo.jsonl": (300, "text", "a", ["Don’t think you need all the bells and whistles?"]),
    "glaive_toolcall_en_demo.json": (300, "conversations", "uauat", [
        "Hi, I have some ingredients", "Of course! I can help", "I have chicken, bell", "", '{"recipes": [{"name"']),
    "kto_en_demo.json": (300, "messages", "ua", ["The Federal Trade Commission", "Ooh ooh ah ah!"]),
    "medical_sft_1K_format.jsonl": (1000, "conversations", "ua", ["治疗阳痿吃什么药呢？", "男子早泄、早泄病症"]),
    "mllm_demo.json": (6, "messages", "uaua", [
        "<image>Who are they?", "They're Kane", "What are they doing?<image>", "They are celebrating"]),
    "qwen_react_function_call.json": (2, "conversations", None, ["Answer the following questions as best you can."]),
    "self_cognition.jsonl": (142, "query-response", "ua", ["你是？", "我是{{NAME}}，专门设计用于"]),
    "subset_dpo_en_demo.json": (184, "preference", "ua", ["Hi! I'd like to create a", "That sounds like"]),
    "tang_poems/Tang_testing_data.json": (15, "alpaca", "u", [TANG + "雪霽銀妝素，桔高映瓊枝。"]),
    "tang_poems/Tang_testing_gt.txt": (15, "text", "a", ["偕伴登山去\t觀雪且賞桔"]),
    "tang_poems/Tang_training_data.json": (5001, "alpaca", "ua", [
        TANG + "秦川雄帝宅，函谷壯皇居。", "綺殿千尋起，離宮百雉餘。連甍遙接漢，飛觀迥凌虛。雲日隱層闕，風煙出綺疎。"]),
}  # fmt: skip


def test_no_file_is_forgotten(assets):
    data = assets / "data"
    found = {
        str(path.relative_to(data)) for path in data.rglob("*") if path.suffix in (".json", ".jsonl", ".csv", ".txt")
    }
    assert found == {f"formats/{name}" for name in SMALL} | set(LARGE)
    assert len(found) == 26


@pytest.mark.parametrize("name", SMALL)
def test_every_small_file_gives_its_conversations(assets, name):
    loaded = load_source(str(assets / "data" / "formats" / name), strict=True)
    assert loaded.train.data.schema.remove_metadata() == SCHEMA
    assert conversations_of(loaded.train) == SMALL[name]
    assert (loaded.report.rows_read, loaded.report.rows_kept, loaded.report.bad_rows) == (3, 3, 0)


@pytest.mark.parametrize("name", LARGE)
def test_every_large_file_gives_all_its_rows(assets, name):
    rows, shape, roles, contents = LARGE[name]
    loaded = load_source(str(assets / "data" / name), strict=True, need_answer="testing_data" not in name)
    kept = rows - LABELLED_FALSE.get(name, 0)
    assert (loaded.report.rows_read, len(loaded.train)) == (rows, kept)
    assert loaded.report.shapes == {shape: kept}
    assert loaded.report.filtered == ({} if kept == rows else {"the response's label is false": rows - kept})
    first = from_record(loaded.train[0])
    if roles:
        assert "".join(message.role[0] for message in first.messages).startswith(roles[: len(contents)])
    for message, beginning in zip(first.messages, contents, strict=False):
        assert message.content.startswith(beginning)


def test_last_rows_are_read_exactly(assets):
    def last(name: str) -> Conversation:
        return from_record(load_source(str(assets / "data" / name)).train[-1])

    assert last("kto_en_demo.json").messages[1].content.startswith("This GitHub Action is triggere")
    poem = json.loads((assets / "data/tang_poems/Tang_training_data.json").read_text("utf-8"))[-1]
    expected = turns(f"{poem['instruction']}\n{poem['input']}", poem["output"])
    assert last("tang_poems/Tang_training_data.json") == expected
    preference = last("subset_dpo_en_demo.json")
    assert [message.role for message in preference.messages] == ["system", "user", "assistant"]
    assert (preference.system or "").startswith("You are an AI assistant.")
    assert preference.messages[2].content.startswith("Cyril Suk\nB: Christo van Rensburg")
    assert last("mllm_demo.json").images == tuple(
        json.loads((assets / "data/mllm_demo.json").read_text())[-1]["images"]
    )


def test_calls_of_glaive_are_read_with_their_results(assets):
    found = conversations_of(load_source(str(assets / "data" / "glaive_toolcall_en_demo.json")).train)
    ingredients = {"ingredients": ["chicken", "bell peppers", "rice"]}
    assert found[0].messages[3] == Message("assistant", "", True, (ToolCall("search_recipes", ingredients),))
    assert found[0].messages[4].role == "tool"
    assert found[0].tools[0]["function"]["name"] == "search_recipes"
    calls = [call for one in found for message in one.messages for call in message.tool_calls]
    assert len(calls) >= 211
    assert all(isinstance(call.arguments, dict) for call in calls)


def test_only_chosen_responses_are_trainable(assets):
    found = conversations_of(load_source(str(assets / "data" / "subset_dpo_en_demo.json")).train)
    assert all(sum(message.loss for message in one.messages) == 1 and one.messages[-1].loss for one in found)


USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}


@pytest.mark.parametrize("label", [False, "False", "false"])
@pytest.mark.parametrize("column", ["label", "kto_tag", "Label"])
@pytest.mark.parametrize(
    "row", [{"prompt": "q", "completion": "r"}, {"messages": [USER, BOT]}, {"query": "q", "response": "r"}]
)
def test_responses_that_kto_trains_against_are_filtered(row, column, label, tmp_path, capsys):
    other = True if label is False else "True"
    name = write(tmp_path / "a.jsonl", [row | {column: other}, row | {column: label}, row])
    loaded = load_source(name, strict=True)
    assert (loaded.report.rows_kept, loaded.report.filtered) == (2, {"the response's label is false": 1})
    assert "filtered out 1 of 3 (the response's label is false 1)" in capsys.readouterr().err
    assert len(load_source(name, need_answer=False).train) == 3


def test_labels_that_are_classes(tmp_path):
    rows = [{"text": "t", "label": False}, {"query": "q", "response": "r", "label": 0}]
    loaded = load_source(write(tmp_path / "a.jsonl", rows))
    assert (loaded.report.rows_kept, loaded.report.unused_columns) == (2, ["label"])


# Reports and bad rows

GOOD = {"instruction": "q", "input": "", "output": "r", "id": 7}


def test_the_report_counts_formats_and_bad_rows(tmp_path, capsys):
    name = write(tmp_path / "a.jsonl", [GOOD] * 3)
    load_source(name)
    assert (
        capsys.readouterr().err == f"{name}: 3 rows, format alpaca (instruction/input/output); columns not used: id\n"
    )
    name = write(tmp_path / "b.jsonl", [GOOD, GOOD, "oops", {"query": "q", "response": "r"}, {"query": "q"}])
    expected = (
        f"{name}: 3 rows, formats alpaca (instruction/input/output) 2, query-response (query/response) 1; "
        "columns not used: id\n"
        f"warning: {name}: 2 of 5 rows are bad and skipped; first: line 3: not JSON (Expecting value, column 1). "
        "The row: oops (--strict true makes this fatal)\n"
    )
    first = load_source(name)
    assert capsys.readouterr().err == expected
    second = load_source(name)
    assert capsys.readouterr().err == expected
    assert first.report == second.report
    assert [bad.location for bad in first.report.first_bad] == ["line 3", "line 5"]
    assert first.report.first_bad[1].excerpt == '{"query": "q"}'


def test_the_inside_of_rows_is_reported(tmp_path, capsys):
    odd = [USER | {"foo": 1}, USER, BOT | {"reasoning": "why"}]
    name = write(tmp_path / "a.jsonl", [{"messages": odd}, {"messages": [USER, BOT, BOT]}, {"messages": [USER, BOT]}])
    expected = (
        f"{name}: 3 rows, format messages (messages); in 2 rows consecutive turns of one role were joined by a blank "
        "line; columns not used: messages[].foo\n"
    )
    for _ in range(2):  # read, and from the cache
        load_source(name)
        assert capsys.readouterr().err == expected


def test_a_stream_reports_the_same(tmp_path, capsys):
    rows = [{"messages": [USER | {"foo": 1}, BOT, BOT]}, {"messages": [USER, BOT], "label": False}]
    name = write(tmp_path / "a.jsonl", [*rows, {"messages": [USER, BOT]}, {"bar": 1}])
    for limit in ("", "#1"):
        stream = RecordStream([name + limit])
        assert len(list(stream)) == len(list(stream)) == (1 if limit else 2)
        told = capsys.readouterr().err
        assert told.count("format messages (messages") == 1
        assert "; in 1 row consecutive turns of one role were joined by a blank line" in told
        assert "; columns not used: messages[].foo (streamed)" in told
        assert ("filtered out 1 of 4 (the response's label is false 1)" in told) == (not limit)


def test_unused_keys_are_bounded(tmp_path, capsys):
    """Where each message has keys of its own, neither memory nor the line grows with the rows."""
    name = write(tmp_path / "a.jsonl", [{"messages": [USER | {f"k{number}": 1}, BOT]} for number in range(2000)])
    assert len(load_source(name).report.unused_columns) == 1000
    assert "messages[].k19 and 980 more\n" in capsys.readouterr().err


def test_rows_that_no_file_could_hold(tmp_path):
    """Half a surrogate pair, or 900 levels, in any place: a bad row that is named, and not the end of the loading."""
    deep = "[" * 900 + "1" + "]" * 900
    bad = [
        f'{{"messages": [], "foo": {deep}}}',
        f'{{"query": {deep}, "response": "r"}}',
        f'{{"query": "q", "response": "r", "tools": {deep}}}',
        f'{{"query": "q", "response": "r", "tools": [{{"name": "f", "parameters": {deep}}}]}}',
        f'{{"query": "q", "response": "r", "images": {deep}}}',
        f'{{"query": "q", "response": "r", "system": {deep}}}',
        f'{{"query": "q", "response": "r", "history": {deep}}}',
        *(f'{{"query": "q", "response": "r", "{key}": {value}}}' for key, value in [
            ("system", '"\\ud800"'), ("tools", '[{"name": "\\ud800"}]'), ("history", '[["\\udc00", "a"]]'),
            ("images", '["\\ud800"]'), ("chat_template_kwargs", '{"a": "\\ud800"}')]),
    ]  # fmt: skip
    fine = [f'{{"query": "q", "response": "r", "foo": {deep}, "\\ud800": 1}}', GOOD]
    loaded = load_source(write(tmp_path / "a.jsonl", [*bad, *fine]))
    assert (loaded.report.bad_rows, loaded.report.rows_kept) == (len(bad), 2)
    assert [one.location for one in loaded.report.first_bad] == [f"line {number}" for number in range(1, 6)]
    assert "foo" in loaded.report.unused_columns


@pytest.mark.parametrize("cached", [False, True])
def test_strict_names_the_first_bad_row(tmp_path, cached):
    rows = [GOOD] * 16 + [{"instruction": "x" * 200, "output": None}, "more"]
    name = write(tmp_path / f"strict{cached}.jsonl", [*rows, GOOD if cached else {"text": "other"}])
    if cached:
        load_source(name)
    with pytest.raises(DataError) as caught:
        load_source(name, strict=True)
    message = str(caught.value)
    assert message.startswith(f"{name}, line 17: it has a question ('instruction') but no answer")
    assert message.endswith("The row: " + '{"instruction": "' + "x" * 63)


def test_no_row_is_good(tmp_path):
    name = write(tmp_path / "a.jsonl", [{"anwser": 1}] * 8)
    before = set((cache_root() / "rows").glob("*")) if (cache_root() / "rows").exists() else set()
    with pytest.raises(DataError, match=r"none of its 8 rows can be used; first: line 1: .*did you mean 'answer'"):
        load_source(name)
    assert set((cache_root() / "rows").glob("*")) == before


def test_no_usable_column_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="its keys are 'a', 'b'; expected query/response"):
        load_source(str(tmp_path / "a.csv"))


def test_odd_text_in_reports(tmp_path):
    name = write(tmp_path / "a.jsonl", [GOOD, '"\\ud800"', '{"query": "\\ud800", "response": "r"}', "\u2028 x"])
    assert load_source(name).report.bad_rows == 3


def test_rows_without_a_response_are_kept_for_inference_alone(tmp_path):
    name = write(tmp_path / "a.jsonl", [{"query": "q"}, {"query": "q", "response": "r"}])
    assert len(load_source(name).train) == 1
    assert len(load_source(name, need_answer=False).train) == 2


def test_lines_and_whole_files_are_cached_apart(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n")
    for _ in range(2):
        assert len(load_source(str(file)).train) == 2
        (record,) = load_source(str(file), document="file").train
        assert from_record(record) == text("one\ntwo")
    (streamed,) = RecordStream([str(file)], document="file")
    assert from_record(streamed) == text("one\ntwo")
