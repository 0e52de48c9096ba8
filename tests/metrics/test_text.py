"""ROUGE and BLEU: texts without blanks, short texts, empty ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.metrics import text_metrics, words

NAMES = {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match"}
PERFECT = dict.fromkeys(NAMES, 100.0)
NOTHING = dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's 3 hats.", ["the", "cat", "s", "3", "hats"]),
        ("你好，GPT4 世界！", ["你", "好", "gpt4", "世", "界"]),
        ("カメラ", ["カ", "メ", "ラ"]),
        ("한국 사람", ["한", "국", "사", "람"]),
        ("naïve ÉTÉ Привет", ["naïve", "été", "привет"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("👍 ... \n", []),
    ],
)
def test_texts_are_split_by_script(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("text", ["42", "a", "ab", "好", "👍", "!", "the cat sat on the mat", "我在北京天安门", ""])
def test_same_text_is_perfect(text):
    assert text_metrics([text], [text]) == PERFECT


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "an answer"), ("an answer", ""), (" \n", "我"), ("👍", "👎")]
)
def test_texts_without_common_words_score_zero(prediction, reference):
    assert text_metrics([prediction], [reference]) == NOTHING


def test_blanks_alone_equal_nothing():
    assert text_metrics([" \n"], [""]) == PERFECT


def test_scores_equal_values_computed_by_hand():
    found = text_metrics(["我在上海工作"], ["我在北京工作"])
    assert found["rouge-1"] == pytest.approx(100 * 4 / 6, abs=1e-4)
    assert found["rouge-2"] == pytest.approx(100 * 2 / 5, abs=1e-4)
    assert found["rouge-l"] == pytest.approx(100 * 4 / 6, abs=1e-4)
    # precisions 4/6 2/5, then method3's 1/(2*4) and 1/(4*3)
    assert found["bleu-4"] == pytest.approx(100 * (4 / 6 * 2 / 5 / 8 / 12) ** 0.25, abs=1e-4)
    assert found["exact_match"] == 0


def test_order_of_words_counts_in_rouge_l_only():
    found = text_metrics(["b a"], ["a b"])
    assert (found["rouge-1"], found["rouge-2"], found["rouge-l"]) == (100, 0, 50)


def test_bleu_ignores_white_space_and_exact_match_the_ends():
    found = text_metrics(["the cat\n"], ["the  cat"])
    assert (found["bleu-4"], found["exact_match"]) == (100, 0)
    assert text_metrics(["  the cat\n"], ["the cat"])["exact_match"] == 100


def test_scores_are_means_over_samples():
    assert text_metrics(["x", "", "z"], ["x", "y", "z"]) == dict.fromkeys(NAMES, 66.6667)


def test_no_samples_have_no_scores():
    assert text_metrics([], []) == {}


def test_unequal_numbers_are_a_fault_of_ours():
    with pytest.raises(ValueError, match="shorter"):
        text_metrics(["a"], [])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_scores_of_any_texts_are_percentages(prediction, reference):
    found = text_metrics([prediction], [reference])
    assert set(found) == NAMES
    assert all(0 <= value <= 100 for value in found.values())
    assert text_metrics([reference], [reference]) == PERFECT


FEW = st.lists(st.sampled_from(["a", "b", "cd", "好", "e"]), max_size=12).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(FEW, FEW)
def test_scores_equal_those_of_rouge_score_and_nltk(prediction, reference):
    pytest.importorskip("rouge_score", reason="the packages that compute the same")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    found = text_metrics([prediction], [reference])
    if prediction != reference:
        tokenizer = type("Words", (), {"tokenize": staticmethod(words)})()
        theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer).score(reference, prediction)
        for ours, name in (("rouge-1", "rouge1"), ("rouge-2", "rouge2"), ("rouge-l", "rougeL")):
            assert found[ours] == pytest.approx(100 * theirs[name].fmeasure, abs=1e-4)
    written, wanted = ([*text.replace(" ", "")] for text in (prediction, reference))
    if order := min(4, len(written), len(wanted)):
        smoothing = SmoothingFunction().method3
        bleu = sentence_bleu([wanted], written, weights=(1 / order,) * order, smoothing_function=smoothing)
        assert found["bleu-4"] == pytest.approx(100 * bleu, abs=1e-4)


def test_long_texts_take_no_time():
    text = " ".join(str(number % 97) for number in range(20_000))
    assert text_metrics([text], [text[5:]])["rouge-l"] > 99
