"""Every dataset of the catalogue: rows in the shape of the original, laid out as on the hub, and what they become."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from llmtune.data.canonical import comparison_of, from_record
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.loading import load_source
from llmtune.data.remote import HubOptions

from .catalogue_cases import CASES, PREFERENCES

REFERENCE = [
    "alpaca-en", "alpaca-zh", "multi-alpaca-all", "instinwild-en", "instinwild-zh", "cot-en", "cot-zh",
    "firefly-all-zh", "instruct-en", "gpt4all-en", "sharegpt-en", "sharegpt-zh", "damo-agent-zh", "damo-agent-mini-zh",
    "code-en", "code-python-zh", "leetcode-python-en", "medical-en", "medical-zh", "medical-mini-zh",
    "lawyer-llama-zh", "tigerbot-law-zh", "blossom-math-zh", "school-math-zh", "text2sql-en", "sql-create-context-en",
    "advertise-gen-zh", "dureader-robust-zh", "cmnli-zh", "jd-zh", "finance-en", "poetry-zh", "cls-fudan-news-zh",
    "ner-jave-zh", "coco-en",
]  # fmt: skip
LATER = [
    "glaive-function-calling-v2", "glaive-toolcall-en", "glaive-toolcall-zh", "numinamath-cot", "openhermes-2.5",
    "self-cognition", "sharegpt-gpt4", "tulu-3-sft", "ultrachat-200k",
]  # fmt: skip
EMBEDDED = ["self-intro", "tiny-qa", "tiny-text", "tiny-pairs", "tiny-labels", "tiny-sums"]


def test_all_keys_are_cases():
    here = {key for key in DATASET_MAPPING if "families" in DATASET_MAPPING.origin(key)}
    assert here == {*REFERENCE, *LATER, *EMBEDDED, *PREFERENCES}
    assert (len(REFERENCE), len(LATER), len(here)) == (35, 9, 57)
    assert set(CASES) == here - set(EMBEDDED) - set(PREFERENCES)


def lay_out(hub: Any, write_lines: Any, key: str, rows: list[Any], *, use_hf: bool) -> None:
    """The rows in every split of every subset, as the hub would lay them out."""
    info = DATASET_MAPPING[key]
    folder = hub.folder(info.hf_dataset_id if use_hf else info.dataset_id, use_hf=use_hf)
    splits = (info.train_splits or ("train",)) + info.val_splits
    subsets = info.subsets or ("default",)
    if info.files:
        return write_lines(folder / info.files[0], rows)
    for subset in subsets:
        for split in splits:
            name = f"{split}-00000-of-00001.jsonl" if use_hf else f"{split}.jsonl"
            write_lines(folder / subset / name, rows)
    if not use_hf:
        meta = {
            subset: {split: {"meta": f"{subset}/{split}.jsonl", "file": ""} for split in splits} for subset in subsets
        }
        (folder / "name.json").write_text(json.dumps(meta))
    return None


def places(keys: Iterable[str]) -> list[tuple[str, bool]]:
    return [
        (key, use_hf)
        for key in keys
        for use_hf in (False, True)
        if (DATASET_MAPPING[key].hf_dataset_id if use_hf else DATASET_MAPPING[key].dataset_id)
    ]


PLACES = places(CASES)


@pytest.mark.parametrize(("key", "use_hf"), PLACES, ids=lambda value: {True: "hf", False: "ms"}.get(value, value))
def test_rows_of_each_dataset_become_the_expected_conversations(key, use_hf, hub, write_lines, capsys):
    case, info = CASES[key], DATASET_MAPPING[key]
    lay_out(hub, write_lines, key, case.rows, use_hf=use_hf)
    loaded = load_source(key, hub=HubOptions(use_hf=use_hf))
    assert hub.asked == [(info.hf_dataset_id if use_hf else info.dataset_id, use_hf)]

    subsets = len(info.subsets) or 1
    parts = [(loaded.train, loaded.report, subsets * (len(info.train_splits) or 1))]
    if info.val_splits:
        parts.append((loaded.validation, loaded.validation_report, subsets * len(info.val_splits)))
    else:
        assert loaded.validation is None
    for rows, report, times in parts:
        assert [from_record(row) for row in rows] == case.expected * times
        assert report.filtered == {reason: count * times for reason, count in case.filtered.items()}
        assert report.bad_rows == len(case.bad) * times
        for bad, reason in zip(report.first_bad, case.bad, strict=False):
            assert reason in bad.reason
        assert report.rows_read == report.rows_kept + report.bad_rows + sum(report.filtered.values())
    told = capsys.readouterr().err
    for reason, count in case.filtered.items():
        assert f"{reason} {count * parts[0][2]}" in told


@pytest.mark.parametrize(
    ("key", "use_hf"), places(PREFERENCES), ids=lambda value: {True: "hf", False: "ms"}.get(value, value)
)
def test_rows_of_each_preference_dataset_become_comparisons(key, use_hf, hub, write_lines):
    case, info = PREFERENCES[key], DATASET_MAPPING[key]
    lay_out(hub, write_lines, key, [case.row], use_hf=use_hf)
    loaded = load_source(key, kind="labels" if case.label is not None else "pairs", hub=HubOptions(use_hf=use_hf))
    assert (loaded.validation is not None) == bool(info.val_splits)
    made = comparison_of(loaded.train[0])
    assert [message.content for message in made.prompt.messages] == case.prompt
    assert [[one.content for one in answer.messages] for answer in made.answers] == [[text] for text in case.answers]
    assert [answer.label for answer in made.answers] == [case.label] * len(case.answers)
    assert made.margin == case.margin


def test_a_tie_of_helpsteer_is_filtered(hub, write_lines):
    row = PREFERENCES["helpsteer3"].row
    other = row | {"overall_preference": 2}
    lay_out(hub, write_lines, "helpsteer3", [row, row | {"overall_preference": 0}, other], use_hf=True)
    loaded = load_source("helpsteer3", kind="pairs", hub=HubOptions(use_hf=True))
    assert loaded.report.filtered == {"a tie": 1}
    assert comparison_of(loaded.train[1]).answers[0].messages[0].content == "bad"
