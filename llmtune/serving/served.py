"""A served model, whatever it computes: its names, its queue, and the limits of requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llmtune.arguments.service import ServeArguments
from llmtune.serving.limits import Metrics
from llmtune.serving.protocol import MAX_MESSAGES, ApiError

if TYPE_CHECKING:
    from llmtune.inference.batching import Batcher
    from llmtune.inference.continuous import ContinuousBatcher
    from llmtune.inference.score_queue import ScoreQueue

CHARACTERS_A_TOKEN = 16
"""Maximum of characters per token, averaged over a prompt: text has 4, deeply indented code 8."""
MIN_CHARACTERS = 20_000
MIN_MESSAGES = 64
MAX_CHARACTERS = 4_000_000
"""Characters, for a model of unknown context length."""


class Served:
    """A model with names, a queue and limits.

    Args:
        config: The model's configuration.
        takes_images: Bodies may hold images.
    """

    def __init__(
        self,
        args: ServeArguments,
        config: Any,
        batcher: Batcher | ContinuousBatcher | ScoreQueue,
        *,
        takes_images: bool = False,
    ) -> None:
        self.args = args
        self.started = int(time.time())
        self.models: dict[str, str | None] = {args.main_name: None}
        self.metrics = Metrics(batcher)
        self._queue, self._takes_images = batcher, takes_images
        text = config.get_text_config()
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self.vocab_size = int(text.vocab_size)

    def adapter(self, model: str) -> str | None:
        """Return PEFT's name of a request's model."""
        if model not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"The model {model!r} does not exist. Available: {known}.", param="model", code="model_not_found"
            )
        return self.models[model]

    def check_size(self, num_characters: int, param: str) -> None:
        """Check a prompt's length before tokenising it, since others would wait for that."""
        limit = self.max_prompt_tokens
        most = MAX_CHARACTERS if limit is None else max(limit * CHARACTERS_A_TOKEN, MIN_CHARACTERS)
        if num_characters > most:
            tokens = "" if limit is None else f", whose limit is {limit:,} tokens,"
            raise too_long(f"The prompt has {num_characters:,} characters; this server{tokens} allows {most:,}.", param)

    @property
    def max_messages(self) -> int:
        """Most messages of a request; each takes at least three tokens, of its role and its end."""
        limit = self.max_prompt_tokens
        return MAX_MESSAGES if limit is None else min(MAX_MESSAGES, max(limit // 3, MIN_MESSAGES))

    @property
    def max_body(self) -> int:
        """Most bytes of a body; for a text model, those of the longest prompt plus 1 MiB.

        An escaped character takes six bytes.
        """
        limit = self.max_prompt_tokens
        if limit is None or self._takes_images:
            return self.args.max_body_size
        return min(self.args.max_body_size, 6 * max(limit * CHARACTERS_A_TOKEN, MIN_CHARACTERS) + (1 << 20))

    @property
    def max_prompt_tokens(self) -> int | None:
        return self.args.max_prompt_length or (None if self.context is None else self.context - 1)

    @property
    def is_idle(self) -> bool:
        return self._queue.num_running + self._queue.num_waiting == 0


def too_long(text: str, param: str) -> ApiError:
    return ApiError(400, text, param=param, code="context_length_exceeded")
