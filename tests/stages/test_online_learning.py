"""Online stages learn: sums by a function, manners by a reward model; three seeds each, as in examples/online."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtune import GrpoArguments, PpoArguments, RmArguments, SftArguments, grpo, ppo, rm, sft

from .test_grpo import of

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "online"
TINY: dict[str, Any] = {"model_type": "llmtune-tiny", "report_to": ["none"], "gradient_accumulation_steps": 1}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def data_of(example: str) -> str:
    """The rows that an example's data.py writes."""
    text = (EXAMPLES / example / "data.py").read_text(encoding="utf-8")
    lines: list[str] = []
    written = SimpleNamespace(stdout=SimpleNamespace(write=lines.append))
    exec(text.replace("import sys\n", ""), {"sys": written})
    return "".join(lines)


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that answers sums with numbers near the result."""
    folder = tmp_path_factory.mktemp("sums")
    (folder / "mixed.jsonl").write_text(data_of("sums"))
    args = SftArguments(
        **TINY, dataset=[str(folder / "mixed.jsonl")], dataset_test_ratio=0, sft_type="full", max_steps=260,
        batch_size=32, learning_rate=2e-3, output_dir=str(folder), logging_steps=100,
    )  # fmt: skip
    return str(sft(args).last_checkpoint)


@pytest.mark.parametrize(("loss", "seed"), [("grpo", 1), ("grpo", 2), ("rloo", 3)])
def test_sums_are_learned_from_a_reward_for_the_right_number(loss, seed, adder, tmp_path):
    args = GrpoArguments(
        **TINY | {"gradient_accumulation_steps": 2}, model_id_or_path=adder, dataset=["tiny-sums"], loss=[loss],
        rewards=["accuracy"], beta=0.0, lora_target_modules=["ALL"], lora_rank=32, lora_alpha=64, max_new_tokens=6,
        num_generations=8, batch_size=128, max_steps=50, learning_rate=1e-3, lr_scheduler_type="constant", seed=seed,
        eval_steps=25, eval_temperature=1.0, save_strategy="no", logging_steps=1,
        train_args=["eval_on_start=true"], output_dir=str(tmp_path),
    )  # fmt: skip
    folder = grpo(args).output_dir
    sampled, held_out = of(folder, "reward"), of(folder, "eval_reward")
    assert mean(sampled[-8:]) > mean(sampled[:8]) + 0.08
    assert held_out[-1] > held_out[0]
    assert of(folder, "entropy")[-1] > 0


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A policy that answers, or refuses rudely, and a reward model that knows the difference."""
    folder = tmp_path_factory.mktemp("feedback")
    (folder / "mixed.jsonl").write_text(data_of("feedback"))
    policy = sft(
        SftArguments(
            **TINY,
            dataset=[str(folder / "mixed.jsonl")],
            dataset_test_ratio=0,
            sft_type="full",
            max_steps=80,
            batch_size=32,
            learning_rate=2e-3,
            output_dir=str(folder / "sft"),
            logging_steps=100,
        )
    ).last_checkpoint
    reward = rm(
        RmArguments(
            **TINY,
            model_id_or_path=str(policy),
            dataset=["tiny-pairs"],
            max_steps=40,
            batch_size=16,
            learning_rate=1e-3,
            eval_strategy="no",
            save_steps=40,
            output_dir=str(folder / "rm"),
            logging_steps=100,
        )
    ).last_checkpoint
    return str(policy), str(reward)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_manners_are_learned_from_a_reward_model_within_a_bounded_kl(seed, roles, tmp_path):
    policy, reward = roles
    args = PpoArguments(
        **TINY, model_id_or_path=policy, dataset=["tiny-pairs"], rewards=[f"rm:{reward}"], max_new_tokens=32,
        batch_size=32, num_iterations=2, max_steps=80, learning_rate=5e-4, critic_learning_rate=1e-3, beta=0.05,
        kl_target=8.0, lr_scheduler_type="constant", eval_strategy="no", save_strategy="no", logging_steps=1,
        seed=seed, output_dir=str(tmp_path),
    )  # fmt: skip
    folder = ppo(args).output_dir
    scores, kl = of(folder, "reward"), of(folder, "objective/kl")
    assert mean(scores[-4:]) > mean(scores[:4]) + 0.5
    assert abs(kl[0]) < 1e-4
    assert 0 < kl[-1] < 16
    losses = of(folder, "value_loss")
    assert mean(losses[-8:]) < mean(losses[:8])


def test_examples_have_the_settings_of_these_tests():
    """The scripts say what is tested here; a change of one is a change of both."""
    sums = (EXAMPLES / "sums" / "run.sh").read_text()
    feedback = (EXAMPLES / "feedback" / "run.sh").read_text()
    for words in ("--max_steps 260", "--learning_rate 1e-3", "--lora_rank 32", "--max_new_tokens 6"):
        assert words in sums
    for words in ("--max_steps 80", "--learning_rate 5e-4", "--critic_learning_rate 1e-3", "--kl_target 8"):
        assert words in feedback
    assert all(json.loads(line) for name in ("sums", "feedback") for line in data_of(name).splitlines())
