"""Scores of generations by the registry's metrics; each function is called once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from llmtune.data.canonical import to_record
from llmtune.errors import LlmtuneError
from llmtune.evaluation.results import Journal
from llmtune.inference.engine import Engine
from llmtune.metrics import METRIC_MAPPING
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.registry import resolve_reference
from llmtune.samples.collate import PaddingCollator
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.types import Conversation

if TYPE_CHECKING:
    from datasets import Dataset


def answer_scores(
    metrics: Sequence[str], predictions: Sequence[str], references: Sequence[str], rows: Sequence[Conversation]
) -> dict[str, float]:
    """Return the scores of the chosen metrics, in their order.

    Raises:
        LlmtuneError: A metric raises, or does not return numbers by name.
    """
    made: dict[object, dict[str, float]] = {}
    found: dict[str, float] = {}
    for key in metrics:
        info = METRIC_MAPPING[key]
        if info.kind != "answers":
            continue
        assert info.function is not None
        if info.function not in made:
            function = resolve_reference(info.function, what=f"The function of the metric {key!r}")
            try:
                made[info.function] = _checked(key, function(predictions, references, rows))
            except LlmtuneError:
                raise
            except Exception as err:
                raise LlmtuneError(f"The metric {key!r} raises {type(err).__name__}: {err}") from err
        scores = made[info.function]
        for name in info.names or scores:
            if name in found and found[name] != scores[name]:
                raise LlmtuneError(
                    f"The metric {key!r} returns {name!r}, which another metric returns already: rename it."
                )
            found[name] = scores[name]
    return found


def _checked(key: str, scores: object) -> dict[str, float]:
    if not isinstance(scores, dict) or not all(isinstance(name, str) for name in scores):
        raise LlmtuneError(f"The metric {key!r} must return a dict of numbers by name, not {scores!r}.")
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise LlmtuneError(f"The metric {key!r} returns {value!r} for {name!r}, which is not a number.")
    return {name: float(value) for name, value in scores.items()}


# Loss on trainable tokens, computed like the evaluations in training: the same tokens, forward and mean


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
    trainable = sum(record["num_trainable"] for record in records)
    loss = sum(record["loss"] for record in records) / (sum(record["weight"] for record in records) or 1)
    correct = sum(record["num_correct"] for record in records) / max(trainable, 1)
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
        trainable, weight = int(found.num_trainable), float(found.total_weight)
        total, correct = float(found.loss.double()) * weight, int(found.num_correct)
        record = {"index": number, "loss": total, "weight": weight, "num_trainable": trainable, "num_correct": correct}
        journal.add([record])


def _moved(value: torch.Tensor, model: Any) -> torch.Tensor:
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def _dataset(rows: Sequence[Conversation]) -> Dataset:
    import datasets
    import pyarrow as pa

    from llmtune.data.canonical import SCHEMA

    return datasets.Dataset(pa.Table.from_pylist([to_record(row) for row in rows], schema=SCHEMA))
