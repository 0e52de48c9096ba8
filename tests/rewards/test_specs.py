"""Specs of --rewards: every spelling, and one line per mistake."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.errors import LlmtuneError, UsageError
from llmtune.rewards.call import score
from llmtune.rewards.functions import load_reward, load_rewards
from llmtune.rewards.info import REWARD_MAPPING
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.specs import parse_rewards

SOURCE = """
import math
from json import loads
import neighbour

def fn(completions, scale=1.0, **kwargs):
    return [scale * len(text) for text in completions]

class Mine:
    def __init__(self, args, bonus=1):
        self.args, self.bonus = args, bonus
    def __call__(self, completions, **kwargs):
        return [self.bonus for _ in completions]

class Any_:
    def __init__(self, **kwargs):
        self.kwargs = kwargs
    def __call__(self, completions, **kwargs):
        return [self.kwargs["x"] for _ in completions]

def _hidden(completions):
    return []

alias = fn
number = 7
"""
INPUT = RewardInput(prompts=["q"], completions=["abc"], completion_ids=[[1]])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dir (1)" / "my_rewards.py"
    path.parent.mkdir()
    path.write_text(SOURCE, encoding="utf-8")
    (path.parent / "neighbour.py").write_text("x = 1\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_keys_weights_and_options():
    texts = ["accuracy", "format*0.2", " repetition( n=4, max_penalty=-0.5 ) *0.5", "length(target=3)*-1"]
    first, second, third, fourth = parse_rewards(texts)
    assert (first.name, first.kind, first.weight, first.target) == ("accuracy", "key", 1.0, "accuracy")
    assert (second.name, second.weight, second.text) == ("format", 0.2, "format*0.2")
    assert (third.options, third.weight) == ({"n": 4, "max_penalty": -0.5}, 0.5)
    assert fourth.weight == -1
    assert parse_rewards([]) == []


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("pattern='^a(b|c)*, \\d+$'", {"pattern": "^a(b|c)*, \\d+$"}),
        ('pattern="it\'s"', {"pattern": "it's"}),
        ("pattern='\\bword'", {"pattern": "\\bword"}),
        ("pattern=^a$", {"pattern": "^a$"}),
        ("pattern=a{1,2}", {"pattern": "a{1,2}"}),
        ("pattern='", {"pattern": "'"}),
        ("answer_tags=true", {"answer_tags": True}),
        ("answer_tags=False, pattern=none", {"answer_tags": False, "pattern": None}),
        ("pattern=[1, 2],answer_tags=1e-3", {"pattern": [1, 2], "answer_tags": 1e-3}),
        ("", {}),
    ],
)
def test_values_of_options(inner, expected):
    (spec,) = parse_rewards([f"format({inner})*2"])
    assert spec.options == expected
    assert spec.weight == 2


def test_models_keep_their_path():
    first, second = parse_rewards(["rm:output/rm/checkpoint-10/*0.5", "rm:org/model-8b"])
    assert (first.kind, first.target, first.name) == ("model", "output/rm/checkpoint-10/", "checkpoint-10")
    assert first.weight == 0.5
    assert (second.target, second.name, second.weight) == ("org/model-8b", "model-8b", 1.0)
    assert load_rewards([first, second]) == []


def test_models_with_one_folder_name_are_told_apart():
    names = [spec.name for spec in parse_rewards(["rm:a/checkpoint-1", "rm:b/checkpoint-1", "rm:c"])]
    assert names == ["a-checkpoint-1", "b-checkpoint-1", "c"]


def test_functions_and_classes_of_a_file(file):
    texts = [f"{file}:fn(scale=2)*0.5", f"{file}:Mine(bonus=3)", f"{file}:alias", f"{file}:Any_(x=4)"]
    specs = parse_rewards(texts)
    assert [(spec.name, spec.kind, spec.weight) for spec in specs] == [
        ("fn", "file", 0.5), ("Mine", "file", 1.0), ("alias", "file", 1.0), ("Any_", "file", 1.0),
    ]  # fmt: skip
    assert [score(one, INPUT) for one in load_rewards(specs)] == [[6.0], [3.0], [3.0], [4.0]]
    assert load_reward(specs[1]).function.args is None


def test_functions_of_a_module(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "our_package").mkdir()
    (file.parent / "our_package" / "judge.py").write_text(SOURCE.replace("import neighbour", ""), encoding="utf-8")
    (spec,) = parse_rewards(["our_package.judge:fn*2"])
    assert (spec.kind, spec.name, spec.weight) == ("file", "fn", 2.0)
    assert score(load_reward(spec), INPUT) == [3.0]


def test_a_file_is_run_once(file):
    file.write_text("import neighbour\nneighbour.x += 1\ndef fn(completions): pass\ndef gn(completions): pass\n")
    parse_rewards([f"{file}:fn", f"{file}:gn"])
    parse_rewards([f"{file}:fn"])
    assert sys.modules["neighbour"].x == 2
    del sys.modules["neighbour"]


def test_a_plugin_file_of_swift_runs_unchanged(file):
    file.write_text(
        "from swift.plugin import ORM, orms\nfrom swift.plugin.orm import AsyncORM\n"
        "class MyReward(ORM):\n    def __call__(self, completions, **kwargs):\n"
        "        return [1.0 if len(one) == 3 else 0.0 for one in completions]\norms['mine'] = MyReward\n"
    )
    assert score(load_reward(parse_rewards([f"{file}:MyReward"])[0]), INPUT) == [1.0]
    assert not [name for name in sys.modules if name.partition(".")[0] == "swift"]


MISTAKES = [
    ("accuracyy", "Unknown reward 'accuracyy'. Did you mean 'accuracy'? Run `llmtune list rewards` for all 6."),
    ("", "--rewards : this cannot be parsed. Write key, key*weight"),
    ("*0.5", "--rewards *0.5: this cannot be parsed."),
    ("format(pattern='a'", "--rewards format(pattern='a': this cannot be parsed."),
    ("format*", "--rewards format*: '' is not a weight. Write it as in format*0.2."),
    ("format*x", "--rewards format*x: 'x' is not a weight."),
    ("format*nan", "'nan' is not a weight"),
    ("format*inf", "'inf' is not a weight"),
    ("rm:", "--rewards rm:: name the reward model, rm:FOLDER or rm:hub/id."),
    ("rm:a*b", "--rewards rm:a*b: 'b' is not a weight."),
    ("repetition(m=3)", "unknown option 'm'. Options: n, max_penalty."),
    ("repetition(max_penlty=3)", "unknown option 'max_penlty'. Did you mean 'max_penalty'? Options: n, max_penalty."),
    ("repetition(3)", "--rewards repetition(3): '3' is not an option. Write name=value."),
    ("repetition(n=3, n=4)", "the option 'n' is given twice. Keep one."),
    ("nowhere/x.py:fn", "--rewards: there is no file nowhere/x.py (looked for "),
    ("no_such_package.x:fn", "--rewards: there is no module 'no_such_package.x'. Name a file as path/to/file.py:fn."),
    ("FILE:gn", "has no function or class 'gn'. Write "),
    ("FILE:gn", "my_rewards.py:NAME; it has: fn, Mine, Any_, alias."),
    ("FILE:number", "has no function or class 'number'"),
    ("FILE", "my_rewards.py names no function. Write "),
    ("FILE:fn(size=3)", "unknown option 'size'. Options: scale."),
    ("FILE:fn(completions=3)", "unknown option 'completions'. Options: scale."),
    ("FILE:Mine(args=3)", "unknown option 'args'. Options: bonus."),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_each_mistake_is_one_line(text, message, file):
    with pytest.raises(UsageError) as caught:
        parse_rewards([text.replace("FILE", str(file))])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_name_twice_is_refused(file):
    with pytest.raises(UsageError, match=r"^--rewards: format and format\*2 have the same name, 'format'\. Keep one"):
        parse_rewards(["format", "accuracy", "format*2"])
    with pytest.raises(UsageError, match="have the same name"):
        parse_rewards([f"{file}:fn", f"{file}:fn"])


BROKEN = [
    ("1 / 0\n", "ZeroDivisionError: division by zero ({file}:1)"),
    ("def f(:\n", "SyntaxError: "),
    ("\nimport no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing' ({file}:2)"),
    ("raise SystemExit(3)\n", "SystemExit: 3"),
]


@pytest.mark.parametrize(("source", "message"), BROKEN)
def test_a_file_that_raises_is_one_line(source, message, file):
    file.write_text(source)
    with pytest.raises(LlmtuneError) as caught:
        parse_rewards([f"{file}:fn"])
    text = str(caught.value)
    assert text.startswith(f"The file {file} cannot be imported: ")
    assert message.format(file=file) in text
    assert text.endswith("Fix it, or remove it from --rewards.")
    assert f"{file}:1" in text or f"{file}:2" in text
    assert "\n" not in text


@pytest.mark.parametrize("source", ["import no_such_thing\n", "1 / 0\n"])
def test_a_module_that_raises_is_one_line(source, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    name = f"broken_{len(source)}"
    (file.parent / f"{name}.py").write_text(source)
    with pytest.raises(LlmtuneError, match=rf"^The module {name} cannot be imported: .*{name}\.py:1\)\. Fix it"):
        parse_rewards([f"{name}:fn"])


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    with contextlib.suppress(LlmtuneError):  # any other exception fails the test
        assert parse_rewards([text])[0].name


@settings(deadline=None)
@given(st.sampled_from(sorted(REWARD_MAPPING)), st.data())
def test_a_typo_suggests_a_key(key, data):
    place = data.draw(st.integers(0, len(key) - 2))
    typo = key[:place] + key[place + 1] + key[place] + key[place + 2 :]
    if typo in REWARD_MAPPING:
        return
    with pytest.raises(UsageError, match=f"Did you mean .*{key!r}"):
        parse_rewards([typo])
