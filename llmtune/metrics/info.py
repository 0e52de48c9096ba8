"""Entries of the metric registry. Data only: functions that ship with llmtune are imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

MetricFunction = Callable[..., dict[str, float]]
"""`function(predictions, references, rows)`: generated responses, those of the data, and the rows as `Conversation`,
all in one order. Returns scores by name, usually means over the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricInfo(Entry):
    """A metric.

    Attributes:
        function: Or `"module:attribute"`, imported on first use. None for metrics that llmtune computes itself.
        kind: Its inputs: generations for the rows, the loss on them, or choice questions.
        names: Names of the scores to keep of those that the function returns; empty keeps all.
        description: One line for `llmtune list metrics`.
    """

    function: str | MetricFunction | None = None
    kind: Literal["answers", "loss", "choice"] = "answers"
    names: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind == "answers" and self.function is None:
            raise UsageError("A metric of generations needs a function(predictions, references, rows).")


METRIC_MAPPING: Registry[MetricInfo] = Registry(
    "metric",
    MetricInfo,
    builtin="llmtune.metrics.builtin",
    function_field="function",
    entry_points="llmtune.metrics",
    list_command="llmtune list metrics",
)
register_metric = METRIC_MAPPING.register
