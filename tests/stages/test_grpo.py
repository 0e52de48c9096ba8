"""Whole runs of grpo: what they sample and learn, and that nothing but speed depends on how they are computed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtune import GrpoArguments, grpo
from llmtune.checkpoint import numbered_checkpoints
from llmtune.errors import LlmtuneError, UsageError
from llmtune.losses.terms import Options
from llmtune.rollouts.experience import FACTS_FILE, Experience
from llmtune.training.policy import PolicyLoss

REWARDS = '''
def letter(completions, **kwargs):
    """Share of the letter e."""
    return [text.count("e") / max(len(text), 1) for text in completions]

def same(completions, **kwargs):
    return [1.0] * len(completions)

def fails(completions, **kwargs):
    raise ValueError("no such thing")

def nan(completions, **kwargs):
    return [float("nan")] * len(completions)

def short(completions, **kwargs):
    return [1.0]

def none(completions, **kwargs):
    return [None] * len(completions)

def first_ties(completions, question, **kwargs):
    return [0.0 if asked < "5" else len(text) / 100 for text, asked in zip(completions, question)]
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(10) for b in range(2)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.py").write_text(REWARDS)
    return folder


@pytest.fixture
def settings(place: Path) -> dict[str, Any]:
    return {
        "model_type": "llmtune-tiny", "dataset": [str(place / "sums.jsonl")], "val_dataset_sample": 3,
        "rewards": [f"{place / 'mine.py'}:letter"], "max_new_tokens": 6, "num_generations": 4, "batch_size": 4,
        "gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
        "learning_rate": 1e-3, "save_total_limit": -1, "only_save_model": False, "report_to": ["none"],
        "warmup_ratio": 0.0,
    }  # fmt: skip


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path) -> Any:
    def start(folder: str = "run", **options: Any) -> Path:
        return grpo(GrpoArguments(**(settings | {"output_dir": str(tmp_path / folder)} | options))).output_dir

    return start


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Any:
    """What was logged since the last call: to standard error, or to pytest where it has taken the log over."""

    def text() -> str:
        found = capsys.readouterr().err or caplog.text
        caplog.clear()
        return found

    return text


SECONDS = re.compile(r"seconds|^time$|useful_tokens|runtime|per_second|memory|flops|tflops|share|epoch|mfu")


def records(folder: Path) -> list[dict[str, Any]]:
    """The log, but for what depends on the clock."""
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if not SECONDS.search(name)}
        for line in lines
        if "train_loss" not in line
    ]


def of(folder: Path, name: str) -> list[float]:
    return [line[name] for line in records(folder) if name in line]


def close(ours: Path, theirs: Path, tolerance: float = 2e-5) -> None:
    assert len(records(ours)) == len(records(theirs))
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine == pytest.approx(other, rel=tolerance, abs=tolerance)
    assert answers(ours) == answers(theirs)


def answers(folder: Path) -> list[tuple[Any, ...]]:
    lines = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    return [(line["round"], line["row"], line["response"]) for line in lines]


@pytest.mark.medium
def test_a_run_logs_what_it_samples(run):
    folder = run()
    for name in ("reward", "reward_std", "frac_reward_zero_std", "entropy", "clip_ratio/region_mean"):
        assert len(of(folder, name)) == 4, name
    for name in ("completions/mean_length", "completions/clipped_ratio", "rewards/letter/mean", "eval_reward"):
        assert of(folder, name), name
    assert all(abs(loss) < 1e-6 for loss in of(folder, "loss"))
    assert any(norm > 0 for norm in of(folder, "grad_norm"))
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {line["round"] for line in lines} == {0, 1, 2, 3}
    assert all(line["scores"]["letter"] == line["reward"] for line in lines)
    assert "Rollouts: 2 prompts x 4 responses" in (folder / "report.md").read_text()


CASES: dict[str, dict[str, Any]] = {
    "micro-batches": {"batch_size": 2, "gradient_accumulation_steps": 4},
    "one micro-batch": {"batch_size": 8, "gradient_accumulation_steps": 1},
    "responses of several groups": {"batch_size": 3, "gradient_accumulation_steps": 8, "num_generations": 3},
    "rollouts one by one": {"rollout_batch_size": 1},
    "rollouts in threes": {"rollout_batch_size": 3},
    "each prompt apart": {"share_prompt": "false"},
    "padding-free": {"share_prompt": "false", "padding_free": True},
}


@pytest.mark.medium
@pytest.mark.parametrize("loss", ["grpo", "dapo", "rloo"])
@pytest.mark.parametrize("case", CASES)
def test_batches_and_layout_change_nothing_but_speed(case, loss, run):
    options = CASES[case]
    base = {"loss": [loss], "max_steps": 3}
    if "num_generations" in options:
        base |= {"num_generations": 3, "batch_size": 6, "gradient_accumulation_steps": 4}
    close(run("ours", **(base | options)), run("theirs", **base))


REPEATED = {"num_iterations": 2, "num_mini_batches": 2, "max_steps": 7, "save_steps": 1, "eval_steps": 3}
RESUMED: dict[str, dict[str, Any]] = {
    "grpo": {},
    "several steps on one experience": REPEATED,
    "with a reference": {"beta": 0.1},
    "full, with a reference": {"sft_type": "full", "beta": 0.1, **REPEATED},
    "pissa, with a reference": {"lora_init": "pissa", "beta": 0.1},
    "rloo": {"loss": ["rloo"], **REPEATED},
    "reinforce++": {"loss": ["reinforce++"], **REPEATED},
    "ties": {"resample_ties": True, "rewards": ["first_ties"], **REPEATED},
    "dropout": {"lora_dropout_p": 0.2, **REPEATED},
}


@pytest.mark.medium
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_from_each_step_equals_uninterrupted(case, run, place, settings):
    options = {"max_steps": 4, "save_steps": 1} | RESUMED[case]
    options["rewards"] = [f"{place / 'mine.py'}:{name}" for name in options.get("rewards", ["letter"])]
    whole = run("whole", **options)
    expected, told = records(whole), answers(whole)
    log = whole / "logging.jsonl"
    lines = log.read_text()
    checkpoints = numbered_checkpoints(whole)
    halves = [folder for folder in checkpoints if (folder / FACTS_FILE).is_file()]
    assert bool(halves) == ("num_iterations" in options)
    for checkpoint in (checkpoints[0], *halves[1:3]):
        log.write_text(lines)
        grpo(GrpoArguments(**(settings | options | {"resume_from_checkpoint": str(checkpoint)})))
        step = int(checkpoint.name.rpartition("-")[2])
        assert records(whole)[len(expected) :] == [one for one in expected if one["global_step"] > step]
        assert answers(whole) == told


@pytest.mark.medium
def test_another_engine_gives_the_same_responses(run):
    """transformers' continuous batching, whose probabilities differ by rounding: corrected, and logged as a ratio."""
    ours, theirs = run("ours", loss=["dapo"]), run("theirs", loss=["dapo"], rollout_engine="transformers")
    assert answers(ours) == answers(theirs)
    assert of(theirs, "sampling_ratio") == pytest.approx([1] * 4, abs=1e-4)
    assert of(ours, "loss") == pytest.approx(of(theirs, "loss"), abs=1e-4)
    assert not of(ours, "sampling_ratio")


@pytest.mark.medium
def test_the_reference_is_the_model_as_the_run_began(run):
    for name, options in {
        "adapter": {}, "full": {"sft_type": "full"}, "pissa": {"lora_init": "pissa"},
    }.items():  # fmt: skip
        folder = run(name, beta=0.2, max_steps=3, loss=["dapo"], **options)
        kl = of(folder, "kl")
        assert kl[0] == pytest.approx(0, abs=1e-7), name
        assert kl[2] > 1e-6, name


@pytest.mark.medium
def test_the_reference_of_a_given_adapter_is_that_adapter(run):
    first = run("first", max_steps=2, loss=["dapo"])
    folder = run("second", peft_path=str(first / "checkpoint-2"), beta=0.2, max_steps=2, loss=["dapo"])
    assert of(folder, "kl")[0] == pytest.approx(0, abs=1e-7)
    named = run("third", reference=str(first / "checkpoint-2"), beta=0.2, max_steps=1, loss=["dapo"])
    assert of(named, "kl")[0] > 1e-6


@pytest.mark.medium
def test_ties_cost_no_forward_pass_and_are_counted(run, place, monkeypatch):
    calls: list[int] = []
    share = PolicyLoss.share

    def counted(self: Any, model: Any, batch: dict[str, Any], totals: Any) -> Any:
        forward = type(model).forward
        monkeypatch.setattr(type(model), "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
        try:
            return share(self, model, batch, totals)
        finally:
            monkeypatch.setattr(type(model), "forward", forward)

    monkeypatch.setattr(PolicyLoss, "share", counted)
    folder = run(rewards=[f"{place / 'mine.py'}:same"], max_steps=2)
    assert not calls
    assert of(folder, "frac_reward_zero_std") == [1.0, 1.0]
    assert of(folder, "loss") == [0, 0]
    run("other", max_steps=1)
    assert calls


@pytest.mark.medium
def test_resampling_replaces_ties(run, place):
    tied = [f"{place / 'mine.py'}:first_ties"]
    plain = run("plain", rewards=tied, max_steps=3)
    other = run("other", rewards=tied, max_steps=3, resample_ties=True, max_resample=8)
    assert any(of(plain, "frac_reward_zero_std"))
    assert all(np.array(of(other, "reward_std")) > 0)
    rows = {line["row"] for line in map(json.loads, (other / "answers.jsonl").read_text().splitlines())}
    assert rows


@pytest.mark.medium
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fails", r"'fails' raised ValueError: no such thing \(.*mine.py:\d+\) on row \d+"),
        ("nan", r"'nan'.*returned nan for row \d+"),
        ("short", r"'short'.*1 .*for 8"),
        ("none", r"None for row \d+"),
    ],
)
def test_a_reward_that_fails_is_one_clear_line(name, text, run, place):
    with pytest.raises(LlmtuneError) as caught:
        run(rewards=[f"{place / 'mine.py'}:{name}"])
    assert re.search(text, str(caught.value), re.I), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rewards": []}, "--rewards is missing"),
        ({"rewards": ["accuracyy"]}, "accuracy"),
        ({"num_generations": 1}, "--num_generations 1"),
        ({"loss": ["sigmoid"]}, "is over pairs"),
        ({"loss": ["grpo", "dapo"]}, "one loss"),
        ({"loss": ["ppo"]}, "llmtune ppo"),
        ({"max_length": 6}, "--max_length 6 holds a prompt and its response"),
        ({"streaming": True, "max_steps": 3}, "--streaming true"),
        ({"predict_with_generate": True}, "--predict_with_generate"),
        ({"temperature": 0.0}, "--temperature"),
        ({"reference": "somewhere"}, "--reference has no effect with --beta 0"),
        ({"packing": True}, "--packing"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(options, text, settings):
    with pytest.raises(LlmtuneError, match=text):
        GrpoArguments(**(settings | options))


@pytest.mark.medium
def test_steps_hold_whole_groups(run):
    with pytest.raises(UsageError, match="no whole groups of --num_generations 3"):
        run(num_generations=3)


@pytest.mark.medium
def test_sampling_that_the_loss_does_not_know_is_warned_of(run, said):
    run(top_k=5, max_steps=1)
    assert "--top_k and --top_p sample from another distribution" in said()
    run("other", max_steps=1)
    assert "--top_k and --top_p" not in said()


@pytest.mark.parametrize(
    ("correction", "expected"),
    [("truncate", [0.5, 1.0, 2.0, 0.1]), ("mask", [0.5, 1.0, 0.0, 0.0]), ("none", None)],
)
def test_an_engines_other_probabilities_are_truncated_or_masked(correction, expected):
    objective = PolicyLoss("grpo", Options(), correction=correction, limit=2.0)
    found = objective._weights({"correction": torch.tensor([0.5, 1.0, 3.0, 0.1])}, torch.zeros(4))
    assert (None if found is None else found.tolist()) == (None if expected is None else pytest.approx(expected))


@pytest.mark.medium
def test_rounds_without_any_spread_are_warned_of(run, place, said):
    run(rewards=[f"{place / 'mine.py'}:same"], max_steps=4)
    assert said().count("there is no gradient") == 1


@pytest.mark.medium
def test_functions_of_trl_get_the_trainers_state_and_log_measures(run, place):
    (place / "trl_like.py").write_text(
        "def staged(prompts, completions, completion_ids, trainer_state, log_metric, **kwargs):\n"
        "    log_metric('seen_step', trainer_state.global_step)\n"
        "    return [float(len(ids) % 3) for ids in completion_ids]\n"
    )
    folder = run(rewards=[f"{place / 'trl_like.py'}:staged"], max_steps=3)
    assert of(folder, "seen_step") == [0, 1, 2]
    assert (
        len([line for line in (folder / "logging.jsonl").read_text().splitlines() if '"rewards/staged/seconds' in line])
        == 3
    )


@pytest.mark.medium
def test_cut_responses_can_be_masked(run):
    folder = run(mask_cut=True, max_new_tokens=2, max_steps=2)
    assert of(folder, "completions/clipped_ratio")[0] == 1
    assert of(folder, "grad_norm") == [0, 0]


@pytest.mark.medium
def test_old_log_probabilities_equal_those_of_the_first_pass(run, monkeypatch):
    """Adapters on and off, evaluation and training compute the same."""
    ratios: list[float] = []
    policy = PolicyLoss._policy

    def seen(self: Any, batch: Any, logps: torch.Tensor) -> Any:
        found = policy(self, batch, logps)
        ratios.append(float((found.ratio - 1).abs().max()))
        return found

    monkeypatch.setattr(PolicyLoss, "_policy", seen)
    run(num_iterations=2, max_steps=4)
    assert max(ratios[:2]) < 1e-5  # the first step's micro-batches
    assert max(ratios[2:4]) > 1e-4


@pytest.mark.medium
def test_an_experience_is_saved_whole(run, tmp_path):
    folder = run(num_iterations=2, max_steps=3, save_steps=1, beta=0.1)
    found = Experience.load(folder / "checkpoint-1")
    assert found.number == 0
    assert len(list(found.responses())) == 8
    for one in found.responses():
        for name in ("old", "reference", "advantages"):
            assert len(getattr(one, name)) == one.num_sampled
    again = tmp_path / "again"
    again.mkdir()
    found.save(again)
    assert (again / FACTS_FILE).read_bytes() == (folder / "checkpoint-1" / FACTS_FILE).read_bytes()
    assert not (folder / "checkpoint-2" / FACTS_FILE).exists()
