"""Cross entropy at trainable positions: the objective of supervised fine-tuning and of pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmtune.samples.collate import WEIGHTS
from llmtune.samples.prepare import Prepared
from llmtune.training.objective import Share, Totals, Unmeasured
from llmtune.types import IGNORE_INDEX
from llmtune.utils.accelerator import has_float64

TIMES_GUESSING = 2.0
"""A loss above this many times that of uniform guessing has diverged: no data makes the right token that improbable."""


class CrossEntropy(Unmeasured):
    """Weighted mean over the trainable tokens of a step.

    The model must have its supervised loss installed (`models.supervised_loss`).

    Args:
        vocab_size: Of the model; uniform guessing has its logarithm as loss.
        weighted: Whether tokens may have weights other than 1.
    """

    train_metrics = ()
    eval_metrics = ("loss", "token_acc")

    def __init__(self, vocab_size: int, *, weighted: bool) -> None:
        self.divergence_limit = TIMES_GUESSING * math.log(max(vocab_size, 2))
        self.weighted = weighted

    @classmethod
    def of(cls, model: Any, samples: Prepared) -> CrossEntropy:
        """The objective of a model on these samples."""
        vocab_size = model.get_input_embeddings().weight.shape[0]
        return cls(max(vocab_size, len(samples.tokenizer)), weighted=samples.may_weigh)

    def count(self, batch: Mapping[str, Any]) -> Totals:
        trainable = batch["labels"][:, 1:] != IGNORE_INDEX
        sequences = torch.tensor(len(trainable))
        if not self.weighted:
            return Totals(sequences, trainable.sum())
        return Totals(sequences, _total_weight(batch, trainable))

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        divisor = {} if totals is None else {"num_items_in_batch": totals.tokens}
        output = model(**batch, **divisor)
        if totals is not None:
            return Share(output.loss)
        losses = (output.loss.float() * output.total_weight, output.total_weight)
        return Share(output.loss, {"loss": [losses], "token_acc": [(output.num_correct, output.num_trainable)]})


def _total_weight(batch: Mapping[str, Any], trainable: Tensor) -> Tensor:
    dtype = torch.float64 if has_float64(trainable.device.type) else torch.float32
    if WEIGHTS not in batch:
        return trainable.sum().to(dtype)
    return batch[WEIGHTS].view(torch.float32)[:, 1:][trainable].to(dtype).sum()
