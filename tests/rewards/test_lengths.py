"""Rewards over lengths and repetitions: their formulas, and trl's functions as oracles where the definition is one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.errors import UsageError
from llmtune.rewards.cosine import Cosine
from llmtune.rewards.lengths import Length, SoftOverlong
from llmtune.rewards.repetition import Repetition, units


def ids(*lengths: int) -> list[list[int]]:
    return [[1] * length for length in lengths]


def test_soft_overlong_falls_from_the_cache_on():
    assert SoftOverlong(max_length=100, cache=20)(ids(0, 80, 90, 100, 101)) == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_the_cache_is_a_fifth_by_default():
    assert SoftOverlong(max_length=100)(ids(80, 90)) == [0.0, -0.5]


def test_soft_overlong_without_a_cache_is_a_step():
    assert SoftOverlong(max_length=10, cache=0)(ids(10, 11)) == [0.0, -1.0]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.lists(st.integers(0, 80), max_size=5))
def test_soft_overlong_equals_trls(limit, cache, lengths):
    from trl.rewards import get_soft_overlong_punishment

    cache = min(cache, limit)
    theirs = get_soft_overlong_punishment(limit, cache)(ids(*lengths))
    assert SoftOverlong(max_length=limit, cache=cache)(ids(*lengths)) == theirs


def test_length_by_target_is_one_minus_the_distance():
    assert Length(target=10)(ids(10, 5, 15, 0, 20, 40)) == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]


def test_length_in_a_range_is_one():
    assert Length(min=4, max=10)(ids(4, 10, 2, 15, 30)) == [1.0, 1.0, 0.5, 0.5, 0.0]
    assert Length(min=4)(ids(2, 1000)) == [0.5, 1.0]
    assert Length(max=10)(ids(0, 15)) == [1.0, 0.5]


def test_repetition_is_the_share_of_repeated_ngrams():
    reward = Repetition(n=2, max_penalty=-1.0)
    assert reward(["a b c d", "a a a a a", "a", ""]) == [0.0, -0.75, 0.0, 0.0]
    assert reward(["A a a"]) == [-0.5]
    assert math.copysign(1, reward(["a b"])[0]) == 1, "no negative zero"


def test_repetition_counts_characters_of_chinese():
    assert units("我爱GPT-4，真的！") == ["我", "爱", "gpt", "-", "4", "，", "真", "的", "！"]
    assert units("すごい naïve दिन") == ["す", "ご", "い", "naïve", *units("दिन")]
    assert Repetition(n=2)(["哈哈哈哈"]) == pytest.approx([-2 / 3])
    assert Repetition(n=2)(["今天天气好"]) == [0.0]
    assert Repetition(n=2)(["!!!!"]) == pytest.approx([-2 / 3])


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 5), st.sampled_from([-1.0, -0.5, 0.0]))
def test_repetition_equals_trls_over_words(words, n, penalty):
    from trl.rewards import get_repetition_penalty_reward

    theirs = get_repetition_penalty_reward(n, penalty)([words])
    assert Repetition(n=n, max_penalty=penalty)([" ".join(f"w{word}" for word in words)]) == pytest.approx(theirs)


def test_cosine_runs_from_the_short_to_the_long_value():
    reward = Cosine(max_length=10)
    found = reward(["7"] * 4, ids(0, 5, 10, 30), answer=["7"] * 4)
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.5])
    found = reward(["7"] * 4, ids(0, 5, 10, 30), answer=["8"] * 4)
    assert found == pytest.approx([-0.5, -0.25, 0.0, 0.0])
    assert reward(["7"], ids(3), answer=[None]) == [None]
    assert Cosine(max_length=10, column="key").columns == ("key",)
    assert Cosine(max_length=10, column="key")(["7"], ids(0), key=["7"], answer=["8"]) == [1.0]


@settings(deadline=None)
@given(st.integers(1, 50), st.lists(st.booleans(), max_size=4), st.data())
def test_cosine_equals_trls(limit, right, data):
    """trl's accuracy needs math-verify; its curve does not."""
    from trl.rewards import accuracy_rewards, get_cosine_scaled_reward

    lengths = [data.draw(st.integers(0, 60)) for _ in right]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy_rewards, "accuracy_reward", lambda completions, solution: [float(one) for one in right])
        theirs = get_cosine_scaled_reward(limit)([""] * len(right), [""] * len(right), ids(*lengths))
    reward = Cosine(max_length=limit, min_len_value_wrong=-1.0, max_len_value_wrong=-0.5)
    ours = reward(["7" if one else "8" for one in right], ids(*lengths), solution=["7"] * len(right))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftOverlong(), "The reward soft_overlong needs max_length: write soft_overlong(max_length=1024)."),
        (lambda: Cosine(), "The reward cosine needs max_length: write cosine(max_length=1024)."),
        (lambda: SoftOverlong(max_length=0), "soft_overlong(max_length=...) takes a whole number from 1 on, not 0."),
        (lambda: SoftOverlong(max_length=True), "takes a whole number from 1 on, not True."),
        (lambda: SoftOverlong(max_length=9, cache=-1), "soft_overlong(cache=...) takes a whole number from 0 on"),
        (lambda: SoftOverlong(max_length=9, cache=10), "soft_overlong: cache=10 is more than max_length=9."),
        (lambda: Length(), "The reward length takes target, or min and max: write length(target=200)."),
        (lambda: Length(target=3, min=2), "The reward length takes target, or min and max"),
        (lambda: Length(min=3, max=2), "The reward length: min=3 is more than max=2."),
        (lambda: Length(max=0), "length(max=...) takes a whole number from 1 on, not 0."),
        (lambda: Repetition(n=0), "repetition(n=...) takes a whole number from 1 on, not 0."),
        (lambda: Repetition(max_penalty=1), "repetition(max_penalty=...) takes a number up to 0, not 1."),
        (lambda: Repetition(max_penalty=math.nan), "takes a number up to 0, not nan."),
        (lambda: Repetition(max_penalty="a"), "takes a number up to 0, not 'a'."),
        (lambda: Repetition(max_penalty=True), "takes a number up to 0, not True."),
        (lambda: Cosine(max_length=9, max_len_value_wrong="x"), "cosine(max_len_value_wrong=...) takes a number"),
        (lambda: Cosine(max_length=9, max_len_value_wrong=math.inf), "takes a number, not inf."),
        (lambda: Cosine(max_length=9, max_len_value_wrong=True), "takes a number, not True."),
    ],
)
def test_options_out_of_range_are_one_line(make, message):
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bounds_of_options_are_allowed():
    assert SoftOverlong(max_length=5, cache=5)(ids(0, 5)) == [0.0, -1.0]
    assert Length(min=3, max=3)(ids(3)) == [1.0]
    assert Repetition(max_penalty=0)(["a a a a a"]) == [0.0]
