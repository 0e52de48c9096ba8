"""The reward accuracy: where an answer is found, and when two are equal."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.rewards import answers
from llmtune.rewards.accuracy import Accuracy, is_right
from llmtune.rewards.answers import find_answer, number

RIGHT = [
    # numbers equal as numbers
    ("42", "42"),
    ("1,000", "1000.0"),
    ("$1000", "1e3"),
    ("1.5E3", "1500"),
    ("$2,125.50", "2125.5"),
    ("\\$18", "18"),
    ("1/2", "0.5"),
    (r"$\frac{3}{4}$", "0.75"),
    (r"\dfrac12", "0.5"),
    ("\u22125", "-5"),
    ("１２", "12"),
    ("0", "0.0"),
    ("90^\\circ", "90°"),
    ("€5", "5"),
    ("3.", "3"),
    # a percent sign may be missing on one side
    ("50%", "50"),
    ("50 %", "0.5"),
    ("0.5", "50%"),
    ("50%", r"50\%"),
    # of the reference
    ("42", "16 - 3 = 13\n13 + 29 = 42\n#### 42"),
    ("42", r"So it is \boxed{42}."),
    ("42", "<think>41?</think> <answer>42</answer>"),
    ("42", "The answer is 42."),
    # of the completion: marks
    (r"First 7, then \boxed{42}", "42"),
    (r"\boxed{7}, no: \boxed{42}", "42"),
    (r"\boxed{x = 42}", "42"),
    (r"\boxed{\frac{84}{2}}", "42"),
    (r"\boxed {42} and \boxed{open", "42"),
    (r"\boxed{42} \boxed{", "42"),
    (r"\fbox{42}", "42"),
    (r"{\boxed{42}}}", "42"),
    (r"\boxed{\boxed{42}}", "42"),
    (r"\boxed{40 + 2 = 42}", "42"),
    (r"\boxed{42}", "x = 42"),
    (r"\boxed{y = 42}", "$x = 42$"),
    ("<answer>42</answer>", "42"),
    ("<answer> 42 apples", "42"),
    (r"<answer>so $\boxed{42}$ of 100</answer>", "42"),
    ("<answer>1</answer> no <answer>42</answer>", "42"),
    ("Some steps\n#### 42\nmore 7", "42"),
    ("The sum is $42$.\n**Answer:** 42", "42"),
    # phrases: the first number after the last one
    ("The answer is 7. Wait, the answer is 42 apples for 3 people.", "42"),
    ("The final answer is: $42$.", "42"),
    ("The answer is **42**.", "42"),
    ("The answer is 40 + 2 = 42.", "42"),
    ("The answer is 42, where x = 7.", "42"),
    ("The answer is 42 (as 6 * 7 = 42, of 100).", "42"),
    ("答案是42。", "42"),
    ("所以，答案是：42 元", "42"),
    ("答案为 42，共 3 人", "42"),
    ("The answer is\n\n42", "42"),
    # the last number, as the last resort
    ("3 and 39 are 42", "42"),
    ("I think it costs $42.", "42"),
    ("from 50-8, so 42%", "0.42"),
    # text
    ("Paris", "paris"),
    ("<answer>Paris.</answer>", "Paris"),
    ("The capital has rivers.\nParis", "Paris"),
    ("The answer is: Crohn's  disease.", "crohns disease"),
    ("答案是食管克罗恩病。", "食管克罗恩病"),
    (r"\boxed{\text{Paris}}", "Paris"),
    (r"\boxed{x^2 + 1}", "x^2+1"),
    (r"\boxed{y = x^2 + 1}", "x^2+1"),
    (r"\boxed{1, 2}", "1,2"),
    (r"\boxed{\left( 1, 2 \right)}", "(1,2)"),
    # choices
    ("The answer is (B).", "B"),
    ("The answer is (B) Paris", "B"),
    ("B. Paris", "(B)"),
    ("答案是B、巴黎", "B"),
    # after a thought, also of other families, or one that the prompt opened
    (r"<think>\boxed{1}</think>\boxed{42}", "42"),
    (r"so \boxed{1}</think>42", "42"),
    (r"[THINK]\boxed{1}[/THINK]42", "42"),
]

WRONG = [
    ("41", "42"),
    ("", "42"),
    ("   ", "42"),
    ("no number here", "42"),
    ("1 000", "1000"),
    ("3 4", "34"),
    ("5%", "0.5"),
    ("50%", "5"),
    ("v42", "42"),
    ("1.42", "42"),
    ("42b7", "42"),
    ("9,9", "99"),
    ("-42", "42"),
    ("1/0", "0"),
    ("1e999999999", "0"),
    ("9" * 5000, "9"),
    ("42 and 7", "42"),
    (r"42 but \boxed{7}", "42"),
    (r"\boxed{42 or 43}", "42"),
    ("<answer>41, 42 or 43</answer>", "42"),
    (r"<think>\boxed{42}", "42"),
    ("<think>42</think>", "42"),
    ("London", "Paris"),
    ("Paris or London", "Paris"),
    ("x-1", "x1"),
    ("a/b", "ab"),
    (r"\boxed{x - 1}", "x + 1"),
    ("(1,2)", "[1,2]"),
    ("Best guess", "B"),
    ("The answer is C. B is wrong", "B"),
    ("A) this\nB) that", "B"),
    ("...", "!!!"),
    (r"\boxer{42} 7", "42"),
    (r"\boxed{7", "42"),
    ("x = 42 = y", "x = 42 = z"),
    ("3.15", "3.14"),
]


@pytest.mark.parametrize(("completion", "reference"), RIGHT)
def test_right_answers_score_one(completion, reference):
    assert Accuracy()([completion], solution=[reference]) == [1.0]


@pytest.mark.parametrize(("completion", "reference"), WRONG)
def test_wrong_answers_score_zero(completion, reference):
    assert Accuracy()([completion], solution=[reference]) == [0.0]


def test_the_first_column_that_a_row_has_is_the_reference():
    columns = {
        "solution": ["1", None, "", "1"],
        "answer": ["2", "2", None, "2"],
        "ground_truth": ["3", "3", "3", "3"],
        "response": ["4"] * 4,
    }
    assert Accuracy()(["1", "2", "3", "2"], **columns) == [1.0, 1.0, 1.0, 0.0]
    assert Accuracy()(["4"], response=["4"]) == [1.0]
    assert Accuracy()(["7", "7"], other=["7", "7"], answer=["", None]) == [None, None]


def test_a_column_can_be_named():
    reward = Accuracy(column="final_answer")
    assert reward.columns == ("final_answer",)
    assert reward(["7"], final_answer=["7"], solution=["8"]) == [1.0]
    assert Accuracy().columns == ("solution|answer|ground_truth|response",)


@pytest.mark.parametrize(
    ("value", "expected"), [(7, 1.0), (7.0, 1.0), (["6", 7], 1.0), (["6", None], 0.0), ([], None), ({"a": 1}, 0.0)]
)
def test_references_need_not_be_text(value: Any, expected):
    assert Accuracy()(["7"], answer=[value]) == [expected]


def test_kinds_of_answers():
    assert find_answer("x <answer>\n7 </answer> y") == answers.Answer("7", "marked")
    assert find_answer("the answer is 7.5. Or 8") == answers.Answer("7.5", "phrase")
    assert find_answer(" 7 \n") == answers.Answer("7", "whole")
    assert find_answer("<think>7") == answers.Answer("", "whole")


WEIRD = st.lists(
    st.sampled_from(
        [*"0123456789.,/%$e+-\\{}()= \n<>#ab答案是", "\\boxed{", "\\frac{", "</think>", "<answer>", "answer is "]
    )
).map("".join)


@settings(max_examples=300, deadline=None)
@given(WEIRD | st.text(), WEIRD | st.text())
def test_weird_text_never_raises(completion, reference):
    assert Accuracy()([completion], solution=[reference])[0] in (0.0, 1.0, None)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(0, 3))
def test_spellings_of_a_number_are_equal(value, places):
    spellings = [f"{value:,}", f"{value}.{'0' * places}", f"{value}/1", rf"\frac{{{value}}}{{1}}", f"{value}e0"]
    for text in spellings:
        for shown in (text, rf"\boxed{{{text}}}", f"The answer is {text}.", f"<answer>{text}</answer>"):
            assert is_right(shown, str(value)), shown
            assert not is_right(shown, str(value + 1)), shown


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_a_short_text_equals_itself_in_a_box(text):
    if (
        answers.plain(find_answer(text).text)
        and not set(text) & set("{}\\=#<")
        and answers.find_answer(text).kind == "whole"
    ):
        assert is_right(rf"\boxed{{{text}}}", text)


@pytest.mark.parametrize(
    "text",
    ["\n" * 30000, " " * 30000 + "x", "\\boxed{" * 5000, "{" * 30000, "9" * 30000 + "x1", "1 " * 15000, "1/" * 15000,
     "\\frac{" * 5000, "the answer is " * 2000, "1," * 15000, "<think>" * 5000, "#" * 30000, "1" + " " * 30000 + "a"],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_long_degenerate_texts_take_no_time(text):
    began = time.perf_counter()
    for reference in ("42", "Paris", text):
        is_right(text, reference)
    assert time.perf_counter() - began < 1.0  # 0.1 s here; quadratic patterns take tens of seconds


def test_number_reads_no_words():
    assert number("42 apples") is None
    assert number("1e301") is None
    assert number("1e300") is not None
    assert number("") is None


def fake_math_verify(monkeypatch, equal: set[tuple[str, str]], calls: list[Any]) -> None:
    module = ModuleType("math_verify")

    def parse(text: str, parsing_timeout: int | None) -> list[str]:
        if text == "boom":
            raise RuntimeError("weird")
        calls.append((text, parsing_timeout))
        return [text]

    def verify(gold: list[str], found: list[str], timeout_seconds: int | None) -> bool:
        calls.append(timeout_seconds)
        return (gold[0], found[0]) in equal

    module.parse, module.verify = parse, verify  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "math_verify", module)


def test_math_verify_is_asked_where_it_is_installed_and_answers_differ(monkeypatch):
    calls: list[Any] = []
    fake_math_verify(monkeypatch, {("2x", "x+x")}, calls)
    assert is_right("7", "7")
    assert calls == []
    assert is_right("x+x", "2x")
    assert calls == [("2x", 10), ("x+x", 10), 5]
    assert not is_right("x", "2x")
    assert not is_right("boom", "2x")


def test_math_verify_sets_no_signals_outside_of_the_main_thread(monkeypatch):
    calls: list[Any] = []
    fake_math_verify(monkeypatch, {("2x", "x+x")}, calls)
    thread = threading.Thread(target=is_right, args=("x+x", "2x"))
    thread.start()
    thread.join()
    assert calls == [("2x", None), ("x+x", None), None]


def test_without_math_verify_nothing_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert not is_right("x+x", "2x")
