"""Proof at the first save of a reward model that plain transformers reads the same scores from the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llmtune.distributed.ranks import is_first
from llmtune.errors import CheckpointError
from llmtune.models.fp8 import has_fp8
from llmtune.models.heads import inner_model
from llmtune.models.quantization import is_quantized
from llmtune.models.score import load_reward_model
from llmtune.planning.auto import free_memory
from llmtune.samples.prepare import Prepared
from llmtune.utils.logging import get_logger

TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Largest difference of scores, relative to the largest score or 1; of weights in fp32, and in half precision."""


class CheckScores(TrainerCallback):
    """Loads the first checkpoint with transformers and PEFT alone, and compares the scores of one pair.

    Args:
        rows: The ids of two responses with their prompt.
    """

    def __init__(self, trainer: Any, rows: list[list[int]]) -> None:
        self._trainer, self._rows, self._is_done = trainer, rows, False

    def on_save(self, *_: Any, **__: Any) -> None:
        if self._is_done or not is_first():
            return
        self._is_done = True
        self._trainer.finish_saving()
        folder = self._trainer.last_saved
        if reason := self._why_not():
            get_logger().info(f"The scores of {folder.name} are not read back from its files: {reason}.")
            return
        model = self._trainer.model
        inputs = padded(self._rows, model.config.pad_token_id, model.device)
        with torch.no_grad():
            live = _scores(model, inputs)
            saved = _scores(load_reward_model(folder, dtype=inner_model(model).dtype).to(model.device), inputs)
        check_equal(live, saved, folder, TOLERANCE if inner_model(model).dtype is torch.float32 else HALF_TOLERANCE)
        get_logger().info(f"{folder.name} was loaded by transformers alone: the same scores, {_shown(saved)}.")

    def _why_not(self) -> str:
        model, trainer = self._trainer.model, self._trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return "the weights are sharded"
        if is_quantized(model):
            return "they are computed on quantised weights here"
        if has_fp8(model):
            return "they are computed on a base in fp8 here"
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return "" if free_memory() > 2 * size else "there is no memory for a second model"


def check_saved_scores(trainer: Any, samples: Prepared) -> None:
    """Have the first checkpoint checked with the first pair of the training data."""
    first = samples.train_tokens[0]
    sizes = first["parts"].tolist()
    ids = first["input_ids"].tolist()
    prompt, rows, start = ids[: sizes[0]], [], sizes[0]
    for size in sizes[1:3]:
        rows.append(prompt + ids[start : start + size])
        start += size
    trainer.add_callback(CheckScores(trainer, rows))


def padded(rows: list[list[int]], padding: int, device: Any) -> dict[str, Tensor]:
    """Return the rows as a batch, padded on the right."""
    length = max(map(len, rows))
    ids = [row + [padding] * (length - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _scores(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    was_training = model.training
    model.eval()
    found: Tensor = model(**inputs).logits[:, 0].float()
    model.train(was_training)
    return found


def check_equal(live: Tensor, saved: Tensor, folder: Path, tolerance: float) -> None:
    """Raise a CheckpointError if scores differ by more than rounding."""
    scale = live.abs().max().clamp(min=1.0)
    if ((live - saved).abs().max() / scale) > tolerance:
        raise CheckpointError(
            f"{folder} gives other scores when transformers loads it: {_shown(saved)}, and in training {_shown(live)}."
        )


def _shown(scores: Tensor) -> str:
    return " and ".join(f"{value:.4f}" for value in scores.tolist())
