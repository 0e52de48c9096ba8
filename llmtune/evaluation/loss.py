"""Loss on trainable tokens, computed like the evaluations in training: the same tokens, forward and mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from llmtune.data.canonical import to_record
from llmtune.evaluation.journal import Journal
from llmtune.inference.engine import Engine
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.samples.collate import PaddingCollator
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.types import Conversation

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["loss_scores"]


def loss_scores(engine: Engine, rows: Sequence[Conversation], journal: Journal, batch_size: int) -> dict[str, float]:
    """Return `loss` (nats per token), `perplexity`, `token_acc` (a fraction, as in training); {} without responses."""
    answered = [row for row in rows if row.turns and row.turns[-1].role == "assistant"]
    if not answered:
        return {}
    tokens = encode_dataset(_dataset(answered), engine.template, name="evaluation", required=False)
    if not len(tokens):
        return {}
    _measure(engine, tokens, journal, batch_size)
    records = journal.finish()
    learned = sum(record["num_learned"] for record in records)
    loss = sum(record["loss"] for record in records) / (sum(record["weight"] for record in records) or 1)
    correct = sum(record["num_correct"] for record in records) / max(learned, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "token_acc": correct}


def _measure(engine: Engine, tokens: TokenStore, journal: Journal, batch_size: int) -> None:
    model = engine.model
    install_supervised_loss(model)
    collate = PaddingCollator(engine.tokenizer.pad_token_id, engine.template.images)
    order = sorted(range(len(tokens)), key=lambda index: -int(tokens.lengths[index]))
    starts = range(0, len(order), batch_size)
    model.eval()
    for number, start in enumerate(tqdm(starts, desc="Loss", leave=False)):
        if number in journal.records:
            continue
        batch = collate([tokens[index] for index in order[start : start + batch_size]])
        with torch.inference_mode():
            found = model(**{name: _moved(value, model) for name, value in batch.items()})
        learned, weight = int(found.num_learned), float(found.total_weight)
        total, correct = float(found.loss.double()) * weight, int(found.num_correct)
        record = {"index": number, "loss": total, "weight": weight, "num_learned": learned, "num_correct": correct}
        journal.add([record])


def _moved(value: torch.Tensor, model: Any) -> torch.Tensor:
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def _dataset(rows: Sequence[Conversation]) -> Dataset:
    import datasets
    import pyarrow as pa

    from llmtune.data.canonical import SCHEMA

    return datasets.Dataset(pa.Table.from_pylist([to_record(row) for row in rows], schema=SCHEMA))
