"""What a metric is. Data only: the functions that ship with llmtune are imported when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

__all__ = ["METRIC_MAPPING", "MetricFunction", "MetricInfo", "register_metric"]

MetricFunction = Callable[..., dict[str, float]]
"""`function(predictions, references, rows)`: what the model wrote, what the data says, and the rows, as `Conversation`,
all in one order. Returns scores by name; a mean over the rows, usually."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricInfo(Entry):
    """One way to score.

    Attributes:
        function: Or `"module:attribute"`, imported on first use. None for what llmtune itself computes from the model.
        kind: What it needs: the answers to the rows, the loss on them, or choice questions.
        names: Of what the function returns, the scores that are kept; all of them where none are named.
        description: One line for `llmtune list metrics`.
    """

    function: str | MetricFunction | None = None
    kind: Literal["answers", "loss", "choice"] = "answers"
    names: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind == "answers" and self.function is None:
            raise UsageError("A metric of answers needs a function(predictions, references, rows).")


METRIC_MAPPING: Registry[MetricInfo] = Registry(
    "metric",
    MetricInfo,
    builtin="llmtune.metrics.builtin",
    function_field="function",
    entry_points="llmtune.metrics",
    list_command="llmtune list metrics",
)
register_metric = METRIC_MAPPING.register
