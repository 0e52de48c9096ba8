"""Checks the loss of every step: one that is NaN, infinite or diverged is reported with the samples of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmtune.distributed.collectives import any_rank
from llmtune.errors import TrainingError
from llmtune.samples.sampler import FILLER
from llmtune.utils.logging import get_logger

OnNan = Literal["stop", "skip"]
Describe = Callable[[Sequence[int]], str]

SKIPS_IN_A_ROW = 10
"""Consecutive skipped steps after which `skip` stops too: the weights themselves are broken."""


class LossWatch(TrainerCallback):
    """Checks the loss before each optimizer step, at the cost of one device synchronisation per step.

    Args:
        on_nan: `stop` raises, before the weights change; `skip` skips the step.
        limit: A loss above it has diverged; None: no value says so.
        describe: Names samples by their indices.
    """

    def __init__(self, on_nan: OnNan, limit: float | None, describe: Describe) -> None:
        self.on_nan = on_nan
        self.limit = math.inf if limit is None else limit
        self.num_skipped = 0
        self._in_a_row = 0
        self._describe = describe
        self._losses: list[torch.Tensor] = []
        self._samples: list[torch.Tensor | None] = []

    def add(self, loss: torch.Tensor, samples: torch.Tensor | None) -> None:
        """Add the loss of one micro-batch, as its share of the step's loss."""
        self._losses.append(loss.detach())
        self._samples.append(samples)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        losses = torch.stack([loss.float() for loss in self._losses])
        samples, self._losses, self._samples = self._samples, [], []
        gradient = next((parameter.grad for parameter in model.parameters() if parameter.grad is not None), None)
        sound = torch.isfinite(losses).all() & (losses.sum() < self.limit)
        if gradient is not None and not args.fp16:  # the fp16 scaler itself skips steps whose gradients overflow
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            sound = sound & torch.isfinite(local).all().to(sound.device)
        if not any_rank(not bool(sound)):
            self._in_a_row = 0
            return
        text = self._text(losses, [batch for batch in samples if batch is not None], state.global_step + 1)
        self._in_a_row += 1
        if self.on_nan == "stop" or self._in_a_row >= SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{text} Inspect these samples with llmtune check, lower --learning_rate, or skip such steps with "
                "--on_nan skip. To resume from the last checkpoint: --resume_from_checkpoint last."
            )
        self.num_skipped += 1
        get_logger().warning("%s The step is skipped.", text)
        for parameter in model.parameters():
            parameter.grad = None

    def _text(self, losses: torch.Tensor, samples: Sequence[torch.Tensor], step: int) -> str:
        bad = [batch for batch, loss in zip(samples, losses.tolist(), strict=False) if not math.isfinite(loss)]
        chosen = [index for batch in bad or samples for index in batch.tolist() if index != FILLER]
        total = losses.sum().item()
        text = "is NaN or infinite" if not math.isfinite(total) else "has diverged"
        if math.isfinite(total) and total < self.limit:
            text = "has NaN or infinite gradients"
        return f"Loss at step {step} {text} ({total:.4g}). Samples of this step: {self._describe(chosen)}."
