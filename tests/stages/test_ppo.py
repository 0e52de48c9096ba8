"""Whole runs of ppo: its roles on one base model, its critic on disk, its control of the KL, and exact resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import PpoArguments, RmArguments, ppo, rm
from llmtune.checkpoint import numbered_checkpoints
from llmtune.errors import LlmtuneError
from llmtune.models.heads import inner_model
from llmtune.models.score import load_reward_model
from llmtune.rollouts.experience import Experience
from llmtune.training import critic_setup
from llmtune.training.critic import FOLDER, Critic
from llmtune.training.kl_control import KlControl

from .test_grpo import answers, close, of, records

pytestmark = pytest.mark.medium

REWARDS = """
def letter(completions, **kwargs):
    return [text.count("e") / max(len(text), 1) for text in completions]
"""
TINY: dict[str, Any] = {"model_type": "llmtune-tiny", "report_to": ["none"], "logging_steps": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    rows = [{"question": f"{a} + {b} = ?", "answer": str(a + b)} for a in range(10) for b in range(2)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = [{"prompt": row["question"], "chosen": "eee eee eee", "rejected": "bcd bcd"} for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "mine.py").write_text(REWARDS)
    return folder


@pytest.fixture(scope="module")
def reward_model(place: Path) -> Path:
    args = RmArguments(
        **TINY, dataset=[str(place / "pairs.jsonl")], max_steps=12, batch_size=8, gradient_accumulation_steps=1,
        learning_rate=1e-3, output_dir=str(place / "rm"), eval_strategy="no", save_steps=12,
    )  # fmt: skip
    found = rm(args).last_checkpoint
    assert found is not None
    return found


@pytest.fixture
def settings(place: Path) -> dict[str, Any]:
    return TINY | {
        "dataset": [str(place / "sums.jsonl")], "val_dataset_sample": 3, "rewards": [f"{place / 'mine.py'}:letter"],
        "max_new_tokens": 6, "batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4,
        "eval_steps": 4, "save_steps": 1, "learning_rate": 1e-3, "save_total_limit": -1, "only_save_model": False,
        "warmup_ratio": 0.0,
    }  # fmt: skip


@pytest.fixture
def run(settings: dict[str, Any], tmp_path: Path) -> Any:
    def start(folder: str = "run", **options: Any) -> Path:
        return ppo(PpoArguments(**(settings | {"output_dir": str(tmp_path / folder)} | options))).output_dir

    return start


def test_a_run_logs_its_critic_and_its_kl(run):
    folder = run()
    for name in ("value_loss", "explained_variance", "objective/kl", "beta", "reward", "entropy", "kl"):
        assert of(folder, name), name
    assert "frac_reward_zero_std" not in records(folder)[0]
    assert of(folder, "objective/kl")[0] == pytest.approx(0, abs=1e-6)


def test_the_roles_share_one_base(run, reward_model, monkeypatch):
    models: list[Any] = []
    build = critic_setup.build_critic
    monkeypatch.setattr(
        "llmtune.stages.ppo.build_critic", lambda stage, model: (models.append(model), build(stage, model))[1]
    )
    folder = run(rewards=[f"rm:{reward_model}"], max_steps=2)
    (model,) = models
    assert sorted(model.peft_config) == ["default", "reward" + sorted(model.peft_config)[1][6:], "value"]
    assert len([name for name, _ in inner_model(model).named_modules() if name.endswith("embed_tokens")]) == 1
    trained = [name for name, one in model.named_parameters() if one.requires_grad]
    assert trained
    assert all(".default." in f"{name}." for name in trained)
    assert "an adapter of the same base" in (folder / "report.md").read_text()


def test_scores_on_the_shared_base_equal_those_of_the_model_of_its_own(run, reward_model, monkeypatch):
    shared = run("shared", rewards=[f"rm:{reward_model}"], max_steps=3)
    monkeypatch.setattr("llmtune.training.online_setup.shared_scorer", lambda *_: None)
    apart = run("apart", rewards=[f"rm:{reward_model}"], max_steps=3)
    close(shared, apart)


def test_the_critic_is_a_reward_model_that_plain_transformers_loads(run, reward_model):
    folder = run(rewards=[f"rm:{reward_model}"], max_steps=2)
    for checkpoint in numbered_checkpoints(folder):
        model = load_reward_model(checkpoint / FOLDER)
        assert inner_model(model).config.num_labels == 1
        assert sorted(one.name for one in checkpoint.glob("*/adapter_model.safetensors")) == []
    # the value before the stop token is the score of all that came before
    experience = Experience.load(numbered_checkpoints(folder)[0])
    assert all(one.values is not None for one in experience.responses())


def test_the_critic_begins_as_the_reward_model(run, reward_model):
    """Before anything is learned, the value after the last token would be the reward of what is written so far."""
    folder = run(rewards=[f"rm:{reward_model}"], max_steps=1, num_iterations=2)
    experience = Experience.load(numbered_checkpoints(folder)[0])
    model = load_reward_model(reward_model)
    for group in experience.groups[:3]:
        for one in group.responses:
            ids = torch.tensor([[*group.prompt_ids.tolist(), *one.ids.tolist()]])
            with torch.no_grad():
                states = inner_model(model).base_model(input_ids=ids).last_hidden_state
                values = inner_model(model).score(states)[0, len(group.prompt_ids) - 1 : -1, 0]
            assert one.values == pytest.approx(values.numpy(), abs=1e-4)


CASES: dict[str, dict[str, Any]] = {
    "one micro-batch": {"batch_size": 8, "gradient_accumulation_steps": 1},
    "rollouts in threes": {"rollout_batch_size": 3},
    "each prompt apart": {"share_prompt": "false"},
    "padding-free": {"share_prompt": "false", "padding_free": True},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_and_layout_change_nothing_but_speed(case, run):
    close(run("ours", **CASES[case]), run("theirs"))


RESUMED: dict[str, dict[str, Any]] = {
    "adapters": {},
    "full": {"sft_type": "full"},
    "mini-batches and early stopping": {"num_mini_batches": 2, "early_stopping": True, "target_kl": 1e-4},
    "warm-up": {"critic_warmup": 3},
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_from_each_step_equals_uninterrupted(case, run, settings):
    options = RESUMED[case]
    whole = run("whole", **options)
    expected, told = records(whole), answers(whole)
    log = whole / "logging.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for checkpoint in numbered_checkpoints(whole)[:2]:
        log.write_text("".join(lines))
        ppo(PpoArguments(**(settings | options | {"resume_from_checkpoint": str(checkpoint)})))
        step = int(checkpoint.name.rpartition("-")[2])
        again = records(whole)[len(expected) :]
        assert again == [one for one in expected if one["global_step"] > step]
        assert answers(whole) == told


def test_a_warm_up_leaves_the_policy_alone(run):
    folder = run(critic_warmup=2, max_steps=3)
    norms = of(folder, "grad_norm")
    assert norms[:2] == [0, 0]
    assert norms[2] > 0
    assert len(of(folder, "value_loss")) == 3


def test_early_stopping_ends_the_passes_over_a_batch(run):
    folder = run(early_stopping=True, target_kl=1e-9, num_iterations=3, max_steps=6)
    norms = of(folder, "grad_norm")
    assert norms[0] > 0
    assert norms[3] > 0
    assert norms[1:3] == [0, 0]


def test_cut_responses_are_penalised(run):
    plain, penalised = run("plain", max_steps=1), run("penalised", max_steps=1, missing_eos_penalty=2.0)
    cut = of(plain, "completions/clipped_ratio")[0]
    assert cut > 0
    assert of(penalised, "reward")[0] == pytest.approx(of(plain, "reward")[0] - 2 * cut, abs=1e-6)


def test_a_baseline_is_subtracted(run):
    plain, lower = run("plain", max_steps=1), run("lower", max_steps=1, reward_baseline=0.5)
    assert of(lower, "reward")[0] == pytest.approx(of(plain, "reward")[0] - 0.5)


def test_the_value_loss_falls_on_one_experience(run):
    folder = run(num_iterations=8, max_steps=8, critic_learning_rate=1e-3)
    losses = of(folder, "value_loss")
    assert losses[-1] < 0.5 * losses[0]


def test_kl_control_follows_its_target():
    control = KlControl(0.1, target=6.0, horizon=1000)
    control.follow(12.0, 100)
    assert control.beta == pytest.approx(0.1 * 1.02)
    control.follow(0.0, 100)
    assert control.beta == pytest.approx(0.1 * 1.02 * 0.98)


def test_a_folder_without_a_reward_model_is_refused(run, tmp_path):
    with pytest.raises(LlmtuneError, match="no checkpoint folder"):
        run(rewards=[f"rm:{tmp_path / 'nowhere'}"])


def test_gradients_of_the_critic_add_up_over_micro_batches(run, monkeypatch):
    """What the batch size test shows of whole runs, for one step: the sum of the shares is the whole gradient."""
    seen: list[float] = []
    learn = Critic.learn

    def told(self: Any, batches: Any, num_tokens: float) -> Any:
        found = learn(self, batches, num_tokens)
        seen.append(found["value_loss"])
        return found

    monkeypatch.setattr(Critic, "learn", told)
    run("one", max_steps=2)
    run("other", max_steps=2, batch_size=2, gradient_accumulation_steps=4)
    assert seen[:2] == pytest.approx(seen[2:], rel=1e-5)


def test_gamma_is_the_discount_and_no_option_of_losses(settings):
    assert PpoArguments(**settings, gamma=0.9).unused_flags() == []
    assert PpoArguments(**settings, adaptive_kl=False, kl_target=3.0).unused_flags() == ["--kl_target"]
