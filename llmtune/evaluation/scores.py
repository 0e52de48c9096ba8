"""Scores of generations by the registry's metrics; each function is called once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmtune.errors import LlmtuneError
from llmtune.metrics.info import METRIC_MAPPING
from llmtune.metrics.text import text_metrics
from llmtune.registry import resolve_reference
from llmtune.types import Conversation

__all__ = ["answer_scores", "text_scores"]


def text_scores(
    predictions: Sequence[str], references: Sequence[str], rows: Sequence[Conversation]
) -> dict[str, float]:
    """Return ROUGE, BLEU and exact matches, in percent."""
    return text_metrics(predictions, references)


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
