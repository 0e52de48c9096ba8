"""The arguments of `llmtune serve`. Settings of the checkpoint are read as in `infer`."""

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
    """Max generations in one batch."""
    max_queue: int = 256
    """Max generations waiting in the queue; further requests get 429."""
    batching: Literal["auto", "queue", "continuous"] = "auto"
    """queue: llmtune's batching, for every model, with adapters side by side; continuous: continuous batching by
    transformers with a paged cache, for one text model without further adapters; auto: continuous on a GPU if a trial
    generation works, else queue, with the reason logged."""
    max_n: int = 8
    """Max generations per request (`n`)."""
    max_body_size: int = 16 * 1024 * 1024
    """Max bytes per request, images included; for text models, at most what the longest prompt takes."""
    max_prompt_length: int | None = None
    """Max prompt tokens; longer prompts are refused, never cut. Default: the model's context length."""
    request_timeout: float = 600.0
    """Max seconds per request, waiting included."""
    backend: Literal["llmtune", "vllm"] = "llmtune"
    """Serving engine: llmtune, or vLLM if it is installed, with the same flags."""

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        for name in ("max_batch_size", "max_queue", "max_n", "max_body_size", "max_prompt_length"):
            value = getattr(self, name)
            problems.need(value is None or value >= 1, f"--{name} must be 1 or more, not {value}.")
        problems.need(self.request_timeout > 0, f"--request_timeout must be above 0, not {self.request_timeout}.")
        problems.need(
            self.batching != "continuous" or not self.adapters,
            "--batching continuous serves one model: remove --adapters, or use --batching queue.",
        )
        room = self.max_batch_size + self.max_queue
        problems.need(
            self.max_n <= room, f"--max_n {self.max_n} exceeds the {room} generations that batch and queue hold."
        )
