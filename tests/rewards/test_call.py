"""Functions written for trl, ms-swift and verl run unchanged; every wrong result and exception is one line."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import math
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from llmtune.errors import RewardError, UsageError
from llmtune.rewards import call
from llmtune.rewards.call import score, score_all
from llmtune.rewards.functions import RewardFunction, load_reward, option_names
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.results import combine
from llmtune.rewards.specs import RewardSpec

QUESTION = [{"role": "user", "content": "q"}]
INPUT = RewardInput(
    prompts=["q", "q", "q"],
    completions=["a", "bb", "ccc"],
    completion_ids=[[1], [1, 2], [1, 2, 3]],
    columns={"answer": ["a", "x", "ccc"], "level": [1, 2, 3]},
    rows=["row 5", "row 6", "row 7"],
)
CHATS = dataclasses.replace(INPUT, prompts=[QUESTION] * 3)


def load(function: Any, name: str = "fn", **options: Any) -> RewardFunction:
    return load_reward(RewardSpec(text=name, name=name, kind="file", function=function, options=options))


# As trl's documentation has them


def test_trl_functions_get_what_they_name():
    def lengths(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    def exact(completions, answer):
        return [1.0 if one == truth else 0.0 for one, truth in zip(completions, answer, strict=True)]

    def everything(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
        assert prompts == ["q"] * 3
        assert completion_ids == INPUT.completion_ids
        assert trainer_state == "state"
        assert set(kwargs) == {"answer", "level", "messages", "response_token_ids"}
        log_extra("upper", [one.upper() for one in completions])
        log_metric("level", sum(kwargs["level"]) / 3)
        log_metric("level", np.float32(4))
        return [None, 0, True]

    inputs = dataclasses.replace(INPUT, trainer_state="state")
    first, second, third = score_all([load(lengths), load(exact), load(everything)], inputs)
    assert first.values == [1.0, 2.0, 3.0]
    assert second.values == [1.0, 0.0, 1.0]
    assert third.values == [None, 0.0, 1.0]
    assert third.extra == {"upper": ["A", "BB", "CCC"]}
    assert third.metrics == {"level": [2.0, 4.0]}
    assert (first.extra, first.metrics) == ({}, {})
    assert all(0 <= one.seconds < 5 for one in (first, second, third))


def test_trl_completions_have_the_form_of_the_prompt():
    seen = []

    def fn(completions):
        seen.append(completions)
        return [0.0] * len(completions)

    score(load(fn), INPUT)
    score(load(fn), CHATS)
    turns = [[{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}]] * 3
    score(load(fn), dataclasses.replace(CHATS, messages=turns))
    assert seen == [["a", "bb", "ccc"], [[{"role": "assistant", "content": one}] for one in INPUT.completions], turns]


def test_messages_are_those_of_the_whole_conversation_unless_the_data_has_the_column():
    seen = []

    def fn(messages, completions):
        seen.append(messages[0])
        return [0.0] * len(completions)

    score(load(fn), CHATS)
    score(load(fn), INPUT)
    score(load(fn), dataclasses.replace(CHATS, columns={"messages": ["own"] * 3}))
    assert seen == [[*QUESTION, {"role": "assistant", "content": "a"}]] * 2 + ["own"]


def test_trls_own_functions_run():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

    texts = ["<think>a</think>b", "b", "<think>"]
    inputs = dataclasses.replace(CHATS, completions=texts)
    assert score(load(think_format_reward), inputs) == [1.0, 0.0, 0.0]
    assert score(load(get_soft_overlong_punishment(3, 2)), inputs) == [0.0, -0.5, -1.0]
    assert score(load(get_repetition_penalty_reward(2)), inputs) == [0.0, 0.0, 0.0]


# Asynchronous ones


def test_async_functions_run_concurrently():
    begun: list[str] = []

    async def fn(completions, **kwargs):
        begun.append("fn")
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        return [1.0] * len(completions)

    class Judge:
        def __init__(self, args=None):
            self.args = args

        async def __call__(self, completions, **kwargs):
            begun.append("judge")
            while len(begun) < 2:
                await asyncio.sleep(0.001)
            return [2.0] * len(completions)

    def plain(completions):
        return [3.0] * len(completions)

    found = score_all([load(fn), load(plain), load(Judge)], INPUT)
    assert [one.values[0] for one in found] == [1.0, 3.0, 2.0]
    assert sorted(begun) == ["fn", "judge"]


def test_async_functions_run_inside_a_running_loop_and_share_one():
    loops = set()

    async def fn(completions):
        loops.add(id(asyncio.get_running_loop()))
        return [1.0] * len(completions)

    async def notebook():
        return score(load(fn), INPUT)

    assert asyncio.run(notebook()) == [1.0] * 3
    assert score(load(lambda completions: fn(completions)), INPUT) == [1.0] * 3
    assert score(load(functools.partial(fn)), INPUT) == [1.0] * 3
    assert len(loops) == 1


def test_errors_of_async_functions_name_the_row():
    async def fn(completions):
        return [1 / (len(one) - 2) for one in completions]

    async def slow(completions):
        await asyncio.sleep(0)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'fn' raised ZeroDivisionError: .* on row 6 \(completion 'bb'\)"):
        score_all([load(slow, "slow"), load(fn)], INPUT)


# Classes, as ms-swift's plugins


def test_classes_are_instantiated_once_and_get_texts():
    made = []

    class Reward:
        def __init__(self, args, bonus=1.0):
            made.append(args)
            self.bonus = bonus

        def __call__(self, completions, answer, **kwargs):
            assert kwargs["response_token_ids"] == INPUT.completion_ids
            return [self.bonus if one == truth else 0.0 for one, truth in zip(completions, answer, strict=True)]

    function = load(Reward, bonus=2.0)
    assert score(function, CHATS) == [2.0, 0.0, 2.0]
    assert score(function, CHATS) == [2.0, 0.0, 2.0]
    assert made == [None]
    assert function.missing_columns(["level"]) == ["answer"]
    assert option_names(Reward) == ["bonus"]


def test_classes_that_cannot_be_made_are_one_line():
    class Needs:
        def __init__(self, model):
            pass

        def __call__(self, completions):
            pass

    class Fails(Needs):
        def __init__(self):
            raise ValueError("no\nkey")

    class NoCall:
        pass

    with pytest.raises(UsageError, match=r"^The reward 'x' needs the option model: write x\(model=\.\.\.\)\.$"):
        load(Needs, "x")
    with pytest.raises(
        RewardError, match=r"^The reward 'x' cannot be instantiated: ValueError: no key \(.*call.py:\d+\)"
    ):
        load(Fails, "x")
    with pytest.raises(UsageError, match="'x' is a class without __call__"):
        load(NoCall, "x")
    with pytest.raises(UsageError, match=r"The parameters of the reward 'x' cannot be read\. Wrap it: def x\("):
        load(iter, "x")


# verl


def test_verl_functions_are_called_per_row():
    calls = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        calls.append((data_source, solution_str, ground_truth, extra_info))
        return {"score": float(solution_str == ground_truth), "pred": solution_str}

    function = load(compute_score)
    assert function.is_verl
    assert function.missing_columns(["answer"]) == ["ground_truth or reward_model"]
    assert function.missing_columns(["ground_truth"]) == []
    truths = [{"style": "rule", "ground_truth": one} for one in ("a", "b", "ccc")]
    columns = {"reward_model": truths, "data_source": ["gsm8k"] * 3, "extra_info": [{"index": 1}] * 3}
    (found,) = score_all([function], dataclasses.replace(CHATS, columns=columns))
    assert found.values == [1.0, 0.0, 1.0]
    assert found.extra == {"pred": ["a", "bb", "ccc"]}
    assert calls[0] == ("gsm8k", "a", "a", {"index": 1})
    score(function, dataclasses.replace(INPUT, columns={"ground_truth": ["a"] * 3}))
    assert calls[-1] == ("", "ccc", "a", {})


def test_async_verl_functions_and_options():
    async def compute_score(solution_str, ground_truth, factor=1.0, **kwargs):
        assert kwargs["level"]
        return factor * (solution_str == ground_truth)

    inputs = dataclasses.replace(INPUT, columns={"ground_truth": ["a"] * 3, "level": [1, 2, 3]})
    assert score(load(compute_score, factor=3), inputs) == [3.0, 0.0, 0.0]


# Columns and options


def test_a_column_that_the_data_lacks_is_named_before_anything_runs():
    def fn(completions, solution, answer, difficulty=None, **kwargs):
        return [0.0] * len(completions)

    function = load(fn)
    assert function.missing_columns(["answer", "level"]) == ["solution"]
    assert function.missing_columns(["answer", "solution"]) == []
    with pytest.raises(UsageError) as caught:
        function.check_columns(["level", "answer"])
    assert str(caught.value) == (
        "The reward function 'fn' needs the column solution; the data has: answer, level. "
        "Add it to the rows, or remove the function from --rewards."
    )
    function.check_columns(["answer", "solution"])
    with pytest.raises(UsageError, match="the column solution and answer; the data has: none"):
        function.check_columns([])


def test_options_are_preferred_to_columns_and_default_parameters_take_columns():
    def fn(completions, level=0, bonus=0):
        levels = level if isinstance(level, list) else [level] * len(completions)
        return [one + bonus for one in levels]

    assert score(load(fn), INPUT) == [1.0, 2.0, 3.0]
    assert score(load(fn, level=7, bonus=1), INPUT) == [8.0] * 3


def test_options_of_the_run_fill_those_of_keys_only():
    spec = RewardSpec(text="", name="soft_overlong", target="soft_overlong", options={"cache": 4})
    assert load_reward(spec, {"max_length": 10, "cache": 1, "n": 3}).function.cache == 4
    own = RewardSpec(text="", name="fn", kind="file", function=lambda completions, n=1: [n])
    assert load_reward(own, {"n": 7}).options == {}


# Results


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, 0.5, None], [1.0, 0.5, None]),
        ([True, False, np.float32(0.5)], [1.0, 0.0, 0.5]),
        (np.array([1, 2, 3]), [1.0, 2.0, 3.0]),
        (torch.tensor([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]),
        ([torch.tensor(1.0), torch.tensor([2.0]), np.int64(3)], [1.0, 2.0, 3.0]),
        ((one for one in (1, 2, 3)), [1.0, 2.0, 3.0]),
    ],
)
def test_results_become_floats(result, expected):
    found = score(load(lambda completions: result), INPUT)
    assert found == expected
    assert all(one is None or type(one) is float for one in found)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1, 2], "returned 2 rewards for 3 completions. Return one number per completion, or None where it does not"),
        ([], "returned 0 rewards for 3 completions"),
        (None, "returned NoneType, not a list of 3 rewards"),
        (1.0, "returned float, not a list of 3 rewards"),
        ("abc", "returned str, not a list of 3 rewards"),
        ({1: 1, 2: 2, 3: 3}, "returned dict, not a list"),
        (torch.tensor(1.0), "returned 1 rewards for 3 completions"),
        ([1, math.nan, 2], "returned nan for row 6 (completion 'bb'). Return one number"),
        ([1, 2, math.inf], "returned inf for row 7 (completion 'ccc')"),
        (["1", 2, 3], "returned '1' for row 5 (completion 'a')"),
        ([1, [2], 3], "returned [2] for row 6"),
        ([1, torch.tensor([1.0, 2.0]), 3], "returned tensor([1., 2.]) for row 6"),
        ([10**400, 1, 1], "for row 5"),
        ([1, "x" * 500, 3], "for row 6"),
    ],
)
def test_a_wrong_result_is_one_line(result, message):
    with pytest.raises(RewardError) as caught:
        score(load(lambda completions: result), INPUT)
    text = str(caught.value)
    assert text.startswith(f"The reward function 'fn' ({__file__}) returned ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 400


def test_an_exception_names_function_row_answer_and_line():
    def helper(one):
        return 1 / (len(one) - 2)

    def fn(completions):
        return [helper(one) for one in completions]

    inputs = dataclasses.replace(INPUT, completions=["a", "bb", "c " * 100])
    with pytest.raises(RewardError) as caught:
        score(load(fn), inputs)
    line = helper.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"The reward function 'fn' raised ZeroDivisionError: division by zero ({__file__}:{line}) on row 6 "
        "(completion 'bb'). Fix it, or return None for what it cannot score."
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_messages_name_the_file_of_partials_methods_and_decorated_functions():
    class Own:
        def method(self, completions):
            return []

        def __call__(self, completions):
            return []

    @functools.wraps(Own.method)
    def decorated(completions):
        return []

    functions = [
        Own().method,
        Own(),
        functools.partial(Own().method),
        decorated,
        functools.partial(functools.partial(Own())),
    ]
    for function in functions:
        assert load(function).file == __file__
    assert load(np.vectorize(len)).file is not None
    assert RewardFunction(name="sorted", function=sorted).file is None


def test_a_forked_process_has_a_loop_of_its_own():
    async def fn(completions):
        return [1.0] * len(completions)

    score(load(fn), INPUT)
    child = os.fork()
    if child == 0:
        os._exit(0 if score(load(fn), INPUT) == [1.0] * 3 else 1)
    end = time.perf_counter() + 20
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.perf_counter() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert done[1] == 0


def test_an_excerpt_is_short_and_on_one_line():
    inputs = dataclasses.replace(INPUT, completions=["a\nb " * 100] * 3)
    with pytest.raises(RewardError) as caught:
        score(load(lambda completions: [math.nan] * 3), inputs)
    assert "a b a b" in str(caught.value)
    assert "...'" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_error_of_no_single_row_names_them_all():
    def fn(completions):
        if len(completions) > 1:
            raise LookupError
        return [0.0]

    with pytest.raises(RewardError, match=r"raised LookupError: LookupError \(.*\) on row 5 to row 7\. Fix it"):
        score(load(fn), INPUT)

    def other(completions):
        raise ValueError if len(completions) > 1 else KeyError("x")

    with pytest.raises(RewardError, match=r"raised ValueError: ValueError .* on row 5 to row 7"):
        score(load(other), INPUT)


def test_the_search_for_the_row_ends_in_time(monkeypatch):
    monkeypatch.setattr(call, "SEARCH_SECONDS", -1.0)
    calls = []

    def fn(completions):
        calls.append(len(completions))
        return [1 / (len(one) - 3) for one in completions]

    with pytest.raises(RewardError, match="on row 5 to row 7"):
        score(load(fn), INPUT)
    assert calls == [3, 1]


def test_a_function_that_exits_is_an_error():
    def fn(completions):
        sys.exit("bye")

    with pytest.raises(RewardError, match="raised SystemExit: bye"):
        score(load(fn), INPUT.only(0))


def test_rows_without_names_are_counted():
    inputs = dataclasses.replace(INPUT, rows=())
    with pytest.raises(RewardError, match="for completion 1 "):
        score(load(lambda completions: [1, math.nan, 1]), inputs)


def test_an_empty_batch_calls_nothing():
    empty = RewardInput(prompts=[], completions=[], completion_ids=[])
    assert score(load(lambda completions: 1 / 0), empty) == []


def test_a_slow_function_is_logged_once(monkeypatch, capsys):
    monkeypatch.setattr(call, "SLOW_SECONDS", 0.01)
    function = load(lambda completions: time.sleep(0.02) or [0.0] * len(completions), "judge")
    quick = load(lambda completions: [0.0] * len(completions), "quick")
    first = score_all([function, quick], INPUT)[0]
    score_all([function, quick], INPUT)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "warning: The reward function 'judge' took 0.0 s for 3 completions, 0.01 s per completion"
    )
    assert first.seconds >= 0.02


# The sum


def test_rewards_are_summed_by_weight_and_none_adds_nothing():
    assert combine([[1.0, None, 0.0], [2.0, 3.0, None]], [1.0, -0.5]) == [0.0, -1.5, 0.0]
    assert combine([[], []], [1, 1]) == []


def test_a_row_without_any_reward_is_one_line():
    with pytest.raises(RewardError) as caught:
        combine([[1.0, None], [None, None]], [1.0, 1.0], ["row 1", "row 2"], ["a", "b"])
    assert str(caught.value) == (
        "Every reward function returned None for row 2 (completion 'b'): it has no reward. "
        "Remove the row, or let a function return a number for it."
    )
    with pytest.raises(RewardError, match="for completion 1: it has"):
        combine([[1.0, None]], [1.0])


def test_inputs_have_one_value_per_completion():
    with pytest.raises(AssertionError, match="one value per completion"):
        RewardInput(prompts=["q"], completions=["a", "b"], completion_ids=[[1], [2]])
    with pytest.raises(AssertionError, match="one value per completion"):
        dataclasses.replace(INPUT, rows=["row 1"])
