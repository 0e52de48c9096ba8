"""The equalities of one process (fp32, CPU): what must not change a result does not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmtune import SftArguments, sft
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.models.tiny import tiny_folder
from llmtune.samples.collate import PaddingCollator
from llmtune.tuners.lora import add_lora

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#48"], "batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3, "max_steps": 8, "logging_steps": 1, "eval_steps": 4, "save_steps": 4,
    "dataset_test_ratio": 0.1, "val_dataset_sample": 4,
}  # fmt: skip


def losses(run: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (run / "logging.jsonl").read_text(encoding="utf-8").splitlines()]
    return {record["global_step"]: record["loss"] for record in records if "loss" in record}


def run(tmp_path: Path, name: str = "run", **options: Any) -> Any:
    return sft(SftArguments(**(RUN | {"output_dir": str(tmp_path / name)} | options)))


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(str(tiny_folder())).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 2000, (2, 24), generator=torch.Generator().manual_seed(0))


def with_lora(model: Any, **options: Any) -> Any:
    args = SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], lora_target_modules=["ALL"], **options)
    return add_lora(model, args, MODEL_MAPPING["llmtune-tiny"])


def test_lora_at_step_0_is_the_base(model, ids):
    expected = model(ids).logits
    tuned = with_lora(copy.deepcopy(model))
    torch.testing.assert_close(tuned.eval()(ids).logits, expected, atol=0, rtol=0)
    trained = {name for name, value in tuned.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    linear = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained}
    assert linear == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_merged_equals_unmerged(model, ids):
    tuned = with_lora(model)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    expected = tuned(ids).logits
    with tuned.disable_adapter():
        assert not torch.allclose(tuned(ids).logits, expected)
    torch.testing.assert_close(tuned.merge_and_unload()(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing(model):
    install_supervised_loss(model)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (5, 17, 11):
        row = torch.randint(3, 2000, (length,), generator=generator).tolist()
        samples.append({"input_ids": row, "labels": [-100, -100, *row[2:]]})
    collate = PaddingCollator(0)
    alone = [model(**collate([sample])) for sample in samples]
    together = model(**collate(samples))
    total = sum(found.loss * found.num_trainable for found in alone)
    torch.testing.assert_close(together.loss * together.num_trainable, total)


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_1x8_accumulation_equals_8x1(tmp_path, sft_type):
    options = {"sft_type": sft_type, "max_steps": 4, "eval_strategy": "no"}
    one = run(tmp_path, "one", batch_size=1, gradient_accumulation_steps=8, **options)
    other = run(tmp_path, "other", batch_size=8, gradient_accumulation_steps=1, **options)
    assert losses(one.output_dir) == pytest.approx(losses(other.output_dir), rel=1e-4)


@pytest.mark.medium
def test_a_resumed_run_equals_the_one_that_was_not_stopped(tmp_path):
    options = {"lora_dropout_p": 0.1, "num_train_epochs": 3, "max_steps": -1}  # dropout: the random state counts
    whole = run(tmp_path, "whole", save_total_limit=-1, **options)
    steps = max(losses(whole.output_dir))
    assert steps > 24
    assert len(set(losses(whole.output_dir).values())) > 20
    middle = whole.output_dir / "checkpoint-16"
    stopped = tmp_path / "stopped/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    middle.rename(stopped / "checkpoint-16")
    resumed = run(tmp_path, "stopped", resume_from_checkpoint=str(stopped / "checkpoint-16"), **options)
    assert resumed.output_dir == stopped.resolve(), "a resumed run goes on in its own folder"
    after = {step: loss for step, loss in losses(whole.output_dir).items() if step > 16}
    assert losses(resumed.output_dir) == after, "loss for loss, to the last digit logged"
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


@pytest.mark.medium
def test_a_seed_reaches_everything(tmp_path):
    first_run = run(tmp_path, "a", seed=1, lora_dropout_p=0.2).output_dir
    first = losses(first_run)
    saved = json.loads((first_run / "training_args.json").read_text())
    assert (saved["seed"], saved["data_seed"]) == (1, 1), "Trainer seeds again: what it draws, dropout, would follow 42"
    assert losses(run(tmp_path, "b", seed=1, lora_dropout_p=0.2).output_dir) == first
    assert losses(run(tmp_path, "c", seed=2, lora_dropout_p=0.2).output_dir) != first


@pytest.mark.medium
def test_the_logged_loss_is_the_mean_over_learned_tokens_of_the_step(tmp_path):
    """All rows in one step: the first loss equals that of one batch of everything, whatever the micro-batches."""
    found = []
    for size, accumulated in ((3, 16), (48, 1)):
        options = {"batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        found.append(losses(run(tmp_path, f"b{size}", **options).output_dir)[1])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
