"""Continuous batching where it works, else llmtune's queue; and the copies of templates that write prompts."""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmtune.arguments.service import ServeArguments
from llmtune.errors import LlmtuneError
from llmtune.inference.batching import Batcher
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.inference.sampling import Sampling
from llmtune.templates.chat import ChatTemplate
from llmtune.types import Conversation, Message
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.inference.continuous import ContinuousBatcher


PAGED_ON = ("cuda", "xpu")
PAGED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations of transformers 5.23 with a paged cache (continuous_api.py, switch_to_cb_friendly_attn)."""
PATIENCE = 120.0
"""Seconds for the test generation of continuous batching."""


def choose_batcher(engine: Engine, args: ServeArguments) -> Batcher | ContinuousBatcher:
    """Return the batcher for `--batching`.

    Raises:
        UsageError: `continuous` is requested and not possible.
    """
    limits = {"max_batch_size": args.max_batch_size, "max_queue": args.max_queue}
    reason = reason_for_queue(engine) if args.batching == "auto" else ""
    if args.batching == "auto" and args.adapter_root is not None:
        reason = "adapters are loaded at run time"
    if args.batching == "queue" or reason:
        if reason:
            get_logger().info("Batching: llmtune's queue, since %s.", reason)
        return Batcher(engine, **limits)
    if args.batching == "continuous":
        return _continuous(engine, limits)
    found = _tried(engine, limits)
    if isinstance(found, str):
        get_logger().warning("Batching: llmtune's queue, since continuous batching failed: %s", found)
        return Batcher(engine, **limits)
    get_logger().info("Batching: transformers' continuous batching (llmtune's queue: --batching queue).")
    return found


def reason_for_queue(engine: Engine) -> str:
    """Return why continuous batching is not tried; "" where it is."""
    model = engine.model
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None) or "eager"
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    if model.device.type == "cpu":
        return "there is no GPU"
    if model.device.type not in PAGED_ON:
        return f"transformers' continuous batching does not run on {model.device.type.upper()}"
    if engine.template.media is not None:
        return "it is a vision model"
    if any(engine.adapters):
        return "several adapters share the base model"
    if len(places) > 1:
        return "the model is spread over several GPUs"
    if attention not in PAGED:
        return f"attention {attention} has no paged cache"
    return ""


def _continuous(engine: Engine, limits: dict[str, int]) -> ContinuousBatcher:
    from llmtune.inference.continuous import ContinuousBatcher

    return ContinuousBatcher(engine, **limits)


def _tried(engine: Engine, limits: dict[str, int]) -> ContinuousBatcher | str:
    """Return a batcher that has passed the test generation, or its error."""
    try:
        batcher = _continuous(engine, limits)
    except (LlmtuneError, ValueError, RuntimeError, AttributeError, NotImplementedError) as err:
        return _line(err)
    prompt = engine.template.prompts([Conversation((Message("user", "1"),))])[0]
    row = Generation(prompt, Sampling(max_new_tokens=4), engine.template)
    batcher.submit([row])
    end = time.monotonic() + PATIENCE
    while row.finish_reason is None and time.monotonic() < end:
        time.sleep(0.01)
    if row.finish_reason is not None and row.error is None:
        return batcher
    row.cancel()
    batcher.forget_cancelled()
    batcher.close(timeout=1)
    return f"no response within {PATIENCE:g} seconds." if row.error is None else _line(row.error)


def _line(err: Exception) -> str:
    return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else 'no message'}"


# Pool of template copies for rendering prompts: threads cannot share a tokenizer


LONG = 20_000
"""Characters from which a prompt counts as long: about 20 ms of tokenising."""
NUM_SHORT = 2

_Copies = dict[str | None, ChatTemplate]


class Writers:
    """Copies of a service's templates, by adapter name; templates with the same tokenizer share its copy."""

    def __init__(self, templates: Mapping[str | None, ChatTemplate]) -> None:
        self._short: queue.LifoQueue[_Copies] = queue.LifoQueue()
        self._long: queue.LifoQueue[_Copies] = queue.LifoQueue()
        for place in (*[self._short] * NUM_SHORT, self._long):
            place.put(_copied(templates))

    @contextmanager
    def one(self, adapter: str | None, num_characters: int) -> Iterator[ChatTemplate]:
        """Borrow a copy for a prompt of this many characters."""
        place = self._long if num_characters >= LONG else self._short
        copies = place.get()
        try:
            yield copies.get(adapter, copies[None])  # an adapter that was loaded later has the template of None
        finally:
            place.put(copies)


def _copied(templates: Mapping[str | None, ChatTemplate]) -> _Copies:
    tokenizers: dict[int, Any] = {}
    for template in templates.values():
        if id(template.tokenizer) not in tokenizers:
            tokenizers[id(template.tokenizer)] = copy.deepcopy(template.tokenizer)
    return {name: template.copy(tokenizers[id(template.tokenizer)]) for name, template in templates.items()}
