"""`--batching auto`: transformers' continuous batching where it works, else our queue, and the reason."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from llmtune.arguments.serve import ServeArguments
from llmtune.errors import LlmtuneError
from llmtune.inference.batching import Batcher
from llmtune.inference.engine import Engine
from llmtune.inference.rows import Row
from llmtune.inference.sampling import Sampling
from llmtune.types import Conversation, Message
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.inference.continuous import ContinuousBatcher

__all__ = ["choose_batcher", "reason_for_queue"]

PAGED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""What transformers 5.23 computes over a paged cache (continuous_api.py, switch_to_cb_friendly_attn)."""
PATIENCE = 120.0
"""Seconds for the first answer, with which continuous batching shows that it works."""


def choose_batcher(engine: Engine, args: ServeArguments) -> Batcher | ContinuousBatcher:
    """What `--batching` asks for.

    Raises:
        UsageError: `continuous` is asked for, and cannot be.
    """
    limits = {"max_batch_size": args.max_batch_size, "max_queue": args.max_queue}
    reason = reason_for_queue(engine) if args.batching == "auto" else ""
    if args.batching == "queue" or reason:
        if reason:
            get_logger().info("Answers share the model in a queue, since %s.", reason)
        return Batcher(engine, **limits)
    if args.batching == "continuous":
        return _continuous(engine, limits)
    found = _tried(engine, limits)
    if isinstance(found, str):
        get_logger().warning("Answers share the model in a queue, since continuous batching failed: %s", found)
        return Batcher(engine, **limits)
    get_logger().info("Answers share the model by transformers' continuous batching (--batching queue: by ours).")
    return found


def reason_for_queue(engine: Engine) -> str:
    """Why continuous batching is not even tried; "" where it is."""
    model = engine.model
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None) or "eager"
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    if model.device.type != "cuda":
        return "there is no GPU, where a paged cache pays"
    if engine.template.images is not None:
        return "the model sees images"
    if any(engine.adapters):
        return "several models share the base"
    if len(places) > 1:
        return "the model lies on several GPUs"
    if attention not in PAGED:
        return f"there is no paged cache for attention {attention}"
    return ""


def _continuous(engine: Engine, limits: dict[str, int]) -> ContinuousBatcher:
    from llmtune.inference.continuous import ContinuousBatcher

    return ContinuousBatcher(engine, **limits)


def _tried(engine: Engine, limits: dict[str, int]) -> ContinuousBatcher | str:
    """A batcher that has given an answer, or what went wrong."""
    try:
        batcher = _continuous(engine, limits)
    except (LlmtuneError, ValueError, RuntimeError, AttributeError, NotImplementedError) as err:
        return _line(err)
    prompt = engine.template.prompts([Conversation((Message("user", "1"),))])[0]
    row = Row(prompt, Sampling(max_new_tokens=4), engine.template)
    batcher.submit([row])
    end = time.monotonic() + PATIENCE
    while row.finish_reason is None and time.monotonic() < end:
        time.sleep(0.01)
    if row.finish_reason is not None and row.error is None:
        return batcher
    row.cancel()
    batcher.forget_cancelled()
    batcher.close(timeout=1)
    return f"no answer within {PATIENCE:g} seconds." if row.error is None else _line(row.error)


def _line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'no message'}"
