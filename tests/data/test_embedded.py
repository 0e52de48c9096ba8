"""The datasets that ship as code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmtune.data.families.embedded import DEFAULT_AUTHOR, DEFAULT_NAME, facts, introductions, tiny_text
from llmtune.data.families.embedded_turns import self_intro, tiny_qa
from llmtune.data.info import DATASET_MAPPING


def is_chinese(text: str) -> bool:
    return any(ord(character) > 0x2E80 for character in text)


def test_registered_under_their_keys():
    assert DATASET_MAPPING["self-intro"].get_function is self_intro
    assert DATASET_MAPPING["tiny-qa"].get_function is tiny_qa
    assert DATASET_MAPPING["tiny-text"].get_function is tiny_text


def test_importing_families_loads_no_heavy_package():
    code = "import sys, llmtune.data.families; print(sorted({'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_introductions_are_balanced_and_without_duplicates():
    rows = introductions()
    assert 100 <= len(rows) <= 200
    assert len({row["query"] for row in rows}) == len(rows)
    assert 0.4 < sum(is_chinese(row["query"]) for row in rows) / len(rows) < 0.6
    for row in rows:
        assert set(row) == {"query", "response"}
        assert "{{" not in row["query"]
        assert "{{NAME}}" in row["response"] or "{{AUTHOR}}" in row["response"]
        filled = row["response"].replace("{{NAME}}", "").replace("{{AUTHOR}}", "")
        assert "{" not in filled
        assert "}" not in filled
        assert is_chinese(row["query"]) == is_chinese(row["response"])
    assert all(any(part in row["response"] for row in rows) for part in ("{{NAME}}", "{{AUTHOR}}"))


def test_defaults_are_chinese_then_english():
    assert DEFAULT_NAME == ("llmtune-tiny", "llmtune-tiny")
    assert [is_chinese(author) for author in DEFAULT_AUTHOR] == [True, False]


def test_facts_are_balanced_and_validation_is_a_tenth():
    train, validation = facts()
    assert 400 <= len(train) <= 800
    assert 0.08 < len(validation) / len(train) < 0.12
    queries = [row["query"] for row in train + validation]
    assert len(set(queries)) == len(queries)
    assert 0.4 < sum(map(is_chinese, queries)) / len(queries) < 0.6
    assert all(set(row) == {"query", "response"} for row in train + validation)
    assert not any("{" in text or "  " in text for row in train + validation for text in row.values())


def test_validation_asks_for_trained_facts_in_other_words():
    train, validation = tiny_qa()
    known = {row["response"] for row in train if "history" not in row}
    assert {row["response"] for row in validation} <= known


@pytest.mark.parametrize(
    ("query", "response"),
    [
        ("What is 3 plus 4?", "3 plus 4 is 7."),
        ("9减2等于几?", "9减2等于7。"),
        ("What is the capital of Mexico?", "The capital of Mexico is Mexico City."),
        ("法国的首都是哪里?", "法国的首都是巴黎。"),
        ("What colour is grass?", "Grass is green."),
        ("What sound does a rooster make?", "A rooster says cock-a-doodle-doo."),
        ("What day comes after Sunday?", "Monday comes after Sunday."),
        ("星期一之前是星期几?", "星期一的前一天是星期日。"),
    ],
)
def test_some_rows_by_hand(query: str, response: str):
    train, validation = facts()
    assert {"query": query, "response": response} in train + validation


def test_a_part_of_tiny_qa_follows_other_questions():
    """Rows and questions are those of the facts; each fact stays a single question in one wording."""
    train, validation = tiny_qa()
    single, same = facts()
    assert validation == same
    assert [{name: row[name] for name in ("query", "response")} for row in train] == single
    assert "history" not in train[0], "the first sample that the quick start shows"
    known = {(row["query"], row["response"]) for row in single}
    later = [row for row in train if "history" in row]
    assert 0.08 < len(later) / len(train) < 0.2
    assert {len(row["history"]) for row in later} == {1, 2}
    for row in later:
        assert all((query, response) in known for query, response in row["history"])
        assert all(is_chinese(query) == is_chinese(row["query"]) for query, _ in row["history"])
        assert row["query"] not in [query for query, _ in row["history"]]


def test_self_intro_asks_for_capitals_before_and_after_introductions():
    rows = self_intro()
    own = introductions()
    assert rows[: len(own)] == own
    assert len(rows) == DATASET_MAPPING["self-intro"].rows
    assert sum(map(len, tiny_qa())) == DATASET_MAPPING["tiny-qa"].rows
    france = {"query": "What is the capital of France?", "response": "The capital of France is Paris."}
    added = rows[len(own) :]
    assert france in added
    turns = [["history" in row, "{{" in row["response"]] for row in added]
    assert {(True, True), (True, False), (False, False)} == set(map(tuple, turns))
    assert {row["query"] for row in added if "{{" not in row["response"]}.isdisjoint(
        row["query"] for row in tiny_qa()[1]
    ), "validation is held out"


def test_sums_of_tiny_qa_are_right():
    train, validation = tiny_qa()
    checked = 0
    for row in train + validation:
        words = row["response"].rstrip(".").split()
        if len(words) == 5 and words[1] in ("plus", "minus"):
            first, second, result = (int(words[place]) for place in (0, 2, 4))
            assert result == (first + second if words[1] == "plus" else first - second)
            checked += 1
    assert checked > 150


def test_tiny_text_has_short_and_long_documents_in_both_languages():
    from llmtune.models.loading import get_model_tokenizer

    train, validation = tiny_text()
    assert (train, validation) == tiny_text(), "the same everywhere"
    assert len(train) + len(validation) == DATASET_MAPPING["tiny-text"].rows
    assert 0.08 < len(validation) / len(train) < 0.12
    texts = [row["text"] for row in train + validation]
    assert len(set(texts)) == len(texts)
    assert 0.4 < sum(map(is_chinese, texts)) / len(texts) < 0.6
    assert all(set(row) == {"text"} for row in train + validation)
    assert not any("{" in text or text != text.strip() for text in texts)
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    for rows in (train, validation):
        lengths = [len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
        assert sum(length > 512 for length in lengths) > len(rows) / 5
        assert sum(length < 128 for length in lengths) > len(rows) / 5
