"""Every key of REWARD_MAPPING; registering one's own."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import llmtune
from llmtune.cli.main import main
from llmtune.errors import UsageError
from llmtune.registry import resolve_reference
from llmtune.rewards.call import score
from llmtune.rewards.functions import load_rewards
from llmtune.rewards.info import REWARD_MAPPING, RewardInfo, register_reward
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.specs import parse_rewards

KEYS = list(REWARD_MAPPING)
SPELT = {"length": "length(target=5)"}
INPUT = RewardInput(
    prompts=["What is 2 plus 2?", [{"role": "user", "content": "What is 2 plus 2?"}]],
    completions=["<think>2 and 2</think> 4", ""],
    completion_ids=[[1, 2, 3, 4, 5], []],
    columns={"answer": ["4", "4"], "unrelated": [1, 2], "n": [7, 7], "pattern": ["x", "y"]},
)


def test_names_are_exported():
    assert llmtune.REWARD_MAPPING is REWARD_MAPPING
    assert llmtune.RewardInfo is RewardInfo
    assert llmtune.register_reward is register_reward or llmtune.register_reward == register_reward
    assert {"REWARD_MAPPING", "RewardInfo", "register_reward"} <= {*llmtune.__all__}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_scores_a_generic_input(key):
    (function,) = load_rewards(parse_rewards([SPELT.get(key, key)]), {"max_length": 10})
    assert function.missing_columns(INPUT.columns) == []
    first, second = score(function, INPUT)
    assert first is not None
    assert second is not None
    assert first >= second or function.penalty or key == "cosine"
    assert score(function, INPUT.only(0)) == [first], "a reward depends on its own completion only"


@pytest.mark.parametrize("key", KEYS)
def test_every_key_says_what_it_is(key):
    info = REWARD_MAPPING[key]
    assert info.description.endswith(".")
    assert len(info.description) < 100
    assert info.source.startswith("https://")
    made = resolve_reference(info.function, what=key)
    assert "Source:" in (inspect.getdoc(made) or "")
    assert info.source in (inspect.getdoc(made) or "")
    assert {field.name: field.default for field in dataclasses.fields(made)} == dict(info.defaults)


def test_list_and_show_know_rewards(capsys):
    assert main(["list", "rewards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["key", *KEYS]
    assert "solution or answer or ground_truth or response" in lines[1 + KEYS.index("accuracy")]
    assert main(["show", "reward", "accuracy"]) == 0
    assert "llmtune.rewards.accuracy:Accuracy" in capsys.readouterr().out


def test_a_function_and_a_class_can_be_registered():
    @register_reward("even", columns=("parity",), description="Even lengths.")
    def even(completions, parity, scale=2.0):
        return [scale * (len(text) % 2 == 0) for text in completions]

    @register_reward("constant")
    class Constant:
        def __init__(self, value=0.5):
            self.value = value

        def __call__(self, completions, **kwargs):
            assert all(isinstance(text, str) for text in completions)
            return [self.value for _ in completions]

    register_reward("verbatim", RewardInfo(function=Constant, completions="text"))
    first, second, third = load_rewards(parse_rewards(["even(scale=3)", "constant(value=2)*-1", "verbatim"]))
    assert (first.missing_columns(["x"]), first.missing_columns(["parity"])) == (["parity"], [])
    inputs = dataclasses.replace(INPUT, columns={"parity": [0, 0]}, prompts=["a", "b"])
    assert score(first, inputs) == [3.0, 3.0]
    assert score(second, INPUT) == [2, 2]
    assert second.weight == -1
    assert score(third, INPUT) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("form", "expected"),
    [("auto", [str, list]), ("text", [str, str]), ("messages", [list, list])],
)
def test_the_form_of_completions_is_that_of_the_entry(form, expected):
    def fn(completions):
        return [float(type(one) is list) for one in completions]

    register_reward("forms", RewardInfo(function=fn, completions=form))
    (function,) = load_rewards(parse_rewards(["forms"]))
    assert score(function, INPUT) == [float(one is list) for one in expected]


def test_entries_are_checked():
    with pytest.raises(UsageError, match="auto, text or messages, not 'ids'"):
        RewardInfo(function=len, completions="ids")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"columns of a reward entry is a tuple of names: \('answer',\)"):
        RewardInfo(function=len, columns="answer")  # type: ignore[arg-type]
