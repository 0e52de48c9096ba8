"""The arguments of `llmtune serve`. What the checkpoint says about itself is read as in `infer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtune.arguments.answering import API_KEY_VARIABLE, BASE_NAME, ServiceArguments, is_loopback
from llmtune.arguments.checks import Problems

__all__ = ["API_KEY_VARIABLE", "BASE_NAME", "ServeArguments", "is_loopback"]


@dataclass(kw_only=True)
class ServeArguments(ServiceArguments):
    """Server."""

    max_batch_size: int = 16
    """Answers written side by side."""
    max_queue: int = 256
    """Answers that may wait besides; one more is refused with 429."""
    batching: Literal["auto", "queue", "continuous"] = "auto"
    """How answers share the model: queue works with every model and adapters side by side; continuous is
    transformers' own scheduler with a paged cache, for one model of text without further adapters; auto takes
    continuous on a GPU, where a first answer shows that it works, else the queue, and says why."""
    max_n: int = 8
    """Answers that one request may ask for."""
    max_body_size: int = 16 * 1024 * 1024
    """Bytes of a request, images included; for a model of text alone, no more than its longest prompt takes."""
    max_prompt_length: int | None = None
    """Tokens of a prompt; longer ones are refused, never cut. Default: what the model's context holds."""
    request_timeout: float = 600.0
    """Seconds that a request may wait and be answered in."""
    backend: Literal["llmtune", "vllm"] = "llmtune"
    """Who answers: llmtune itself, or vLLM, where it is installed, with the same flags."""

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        for name in ("max_batch_size", "max_queue", "max_n", "max_body_size", "max_prompt_length"):
            value = getattr(self, name)
            problems.need(value is None or value >= 1, f"--{name} must be 1 or more, not {value}.")
        problems.need(self.request_timeout > 0, f"--request_timeout must be above 0, not {self.request_timeout}.")
        problems.need(
            self.batching != "continuous" or not self.adapters,
            "--batching continuous serves one model: leave --adapters away, or give --batching queue.",
        )
        room = self.max_batch_size + self.max_queue
        problems.need(self.max_n <= room, f"--max_n {self.max_n}: the queue holds {room} answers in all.")
