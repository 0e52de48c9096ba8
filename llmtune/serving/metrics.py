"""Metrics for `/metrics`, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmtune.inference.rows import Row

if TYPE_CHECKING:
    from llmtune.inference.batching import Batcher
    from llmtune.inference.continuous import ContinuousBatcher


SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Metrics of one server."""

    def __init__(self, batcher: Batcher | ContinuousBatcher) -> None:
        self.registry = CollectorRegistry()
        one = {"registry": self.registry}
        timed = {"registry": self.registry, "buckets": SECONDS}
        self.requests = Counter("llmtune_requests", "Requests, by path and status.", ["path", "status"], **one)
        self.latency = Histogram(
            "llmtune_request_seconds", "Seconds until the response was complete.", ["path"], **timed
        )
        self.first_token = Histogram("llmtune_first_token_seconds", "Seconds until the first token.", **timed)
        self.prompt_tokens = Counter("llmtune_prompt_tokens", "Prompt tokens, counted once per generation.", **one)
        self.answer_tokens = Counter("llmtune_generated_tokens", "Generated tokens.", **one)
        self.finished_rows = Counter("llmtune_answers", "Generations, by finish reason.", ["finish_reason"], **one)
        self.cancelled = Counter("llmtune_cancelled", "Cancelled requests.", **one)
        Gauge("llmtune_running", "Running generations.", **one).set_function(lambda: batcher.num_running)
        Gauge("llmtune_waiting", "Queued generations.", **one).set_function(lambda: batcher.num_waiting)

    def finished(self, rows: Sequence[Row]) -> None:
        """Count finished generations."""
        for row in rows:
            self.prompt_tokens.inc(len(row.prompt.input_ids))
            self.answer_tokens.inc(len(row.ids))
            self.finished_rows.labels(row.finish_reason).inc()
            if row.first_token_at is not None:
                self.first_token.observe(row.first_token_at - row.made_at)

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
