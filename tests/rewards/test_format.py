"""The reward format: a closed thought, then an answer; and trl's think_format_reward as the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.errors import UsageError
from llmtune.rewards.format import THOUGHTS, Format, split_thought
from llmtune.templates.thoughts import KNOWN

PLAIN = [
    ("<think>a</think>b", 1),
    ("  <think>\na\n</think>\n\nb\n", 1),
    ("<think></think>b", 1),
    ("a</think>b", 1),  # the prompt ended with <think>
    ("[THINK]a[/THINK]b", 1),
    ("<thinking>a</thinking>b", 1),
    ("<seed:think>a</seed:think>b", 1),
    ("<think>a</think><answer>b</answer>", 1),
    ("<think>a</think>\n<answer>\nb\n</answer>\n", 1),
    ("", 0),
    ("b", 0),
    ("<think>a", 0),
    ("<think>a</think>", 0),
    ("<think>a</think>  \n", 0),
    ("x <think>a</think>b", 0),
    ("<think><think>a</think>b", 0),
    ("<think>a</think>b<think>", 0),
    ("<think>a</think>b</think>c", 0),
    ("<think>a</think>[THINK]b", 0),
    ("<think>a</think><answer></answer>", 0),
    ("<think>a</think><answer>b", 0),
    ("<think>a</think>b</answer>", 0),
    ("<think>a</think>x<answer>b</answer>", 0),
    ("<think>a</think><answer>b</answer>x", 0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0),
]


@pytest.mark.parametrize(("text", "expected"), PLAIN)
def test_a_closed_thought_and_an_answer_score_one(text, expected):
    assert Format()([text]) == [float(expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<think>a</think>b", 0), ("<think>a</think><answer>b</answer>", 1), ("a</think><answer>b</answer>", 1)],
)
def test_answer_tags_can_be_required(text, expected):
    assert Format(answer_tags=True)([text]) == [float(expected)]


def test_a_pattern_of_ones_own_replaces_the_rule():
    reward = Format(pattern=r"^Reason: .*\nFinal: \d+$")
    assert reward(["Reason: a\nb\nFinal: 7", "<think>a</think>b", "Final: 7"]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", 7])
def test_a_bad_pattern_is_one_line(pattern):
    with pytest.raises(UsageError, match=r"^The reward format: pattern=.* is not a regular expression: .*\.$"):
        Format(pattern=pattern)


def test_marks_are_those_of_the_templates():
    assert tuple((marks.open, marks.close) for marks in KNOWN) == THOUGHTS


def test_thought_and_answer_are_split():
    assert split_thought("<think>a</think> b ") == ("a", "b")
    assert split_thought("a</think>b") == ("a", "b")
    assert split_thought(" <think>a") == ("a", None)
    assert split_thought(" b ") == (None, "b")


PARTS = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", "b c"]), max_size=7).map("".join)


@settings(deadline=None)
@given(PARTS)
def test_ours_is_one_only_where_trls_is(text):
    """trl's accepts an empty answer and a second </think>; it asks for the opening mark at the very start."""
    from trl.rewards import think_format_reward

    theirs = think_format_reward([[{"content": text}]])[0]
    ours = Format()([text])[0]
    if ours and text.startswith("<think>"):
        assert theirs == 1.0
    if theirs and text.count("</think>") == 1 and text.rpartition("</think>")[2].strip():
        assert ours == 1.0
