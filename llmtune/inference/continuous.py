"""`--batching continuous`: transformers' scheduler with a paged cache; rows join and leave at every step.

Its steps use llmtune's sampler, so rows behave as in the queue: seeds, stops, penalties, constraints.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from llmtune.errors import UsageError
from llmtune.inference.batching import Closed, QueueFull
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.inference.sampling import next_scores
from llmtune.utils.logging import get_logger

try:
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
except ImportError as err:
    raise UsageError("--batching continuous needs transformers 5.23 or newer. Remove the flag.") from err


PAGE = 256
NOBODY = -1


class ContinuousBatcher:
    """A `Batcher` over transformers' continuous-batching manager. For one model without further adapters.

    Args:
        max_batch_size: Rows that are generated in one batch.
        max_queue: Further rows that may wait.

    Raises:
        UsageError: It is a vision model, or has several adapters.
    """

    def __init__(self, engine: Engine, *, max_batch_size: int = 16, max_queue: int = 256) -> None:
        if engine.template.media is not None:
            raise UsageError("--batching continuous supports text models only. Remove the flag.")
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self.rows: dict[int, Generation] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        model = engine.model.get_base_model() if hasattr(engine.model, "get_base_model") else engine.model
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, eos_token_id=engine.template.stop_token_ids, pad_token_id=engine.tokenizer.pad_token_id
            ),
            continuous_batching_config=_config(model, max_batch_size),
        )
        choice = self._manager.logit_processor
        # upstream: transformers 5.23.0 no issue: init_continuous_batching takes no logits processor
        choice.logits_processor = LogitsProcessorList([self.choice()])
        choice.tensors_required, choice.do_processing, choice.supported_keys = 1, True, {"row": int}
        self._manager.start()
        self._watcher = threading.Thread(target=self._watch, name="llmtune-continuous", daemon=True)
        self._watcher.start()

    def choice(self) -> Choice:
        """Return the processor that chooses the tokens."""
        return Choice(self)

    def submit(self, rows: Sequence[Generation], *, adapter: str | None = None) -> None:
        """Queue rows for generation; they emit their pieces themselves.

        Raises:
            QueueFull: The queue has too few slots. Closed: The queue has been closed.
        """
        with self._lock:
            if self._closed:
                raise Closed
            if len(self.rows) + len(rows) > self.max_batch_size + self.max_queue:
                raise QueueFull
            for row in rows:
                number = next(self._numbers)
                self.rows[number] = row
                self._manager.add_request(
                    row.prompt.input_ids,
                    request_id=str(number),
                    max_new_tokens=row.num_left,
                    eos_token_id=row.stop_token_ids,
                    row=number,
                )

    def forget_cancelled(self) -> None:
        for number, row in list(self.rows.items()):
            if row.is_cancelled:
                row.finish("cancelled")
                self.leave(number)

    def leave(self, number: int) -> None:
        """Free the slot and the pages of a finished row."""
        if self.rows.pop(number, None) is not None:
            self._manager.cancel_request(str(number))

    def refuse(self) -> None:
        """Close the queue without waiting."""
        self._closed = True

    def close(self, *, timeout: float | None = None) -> None:
        """Close the queue, and finish the rows in it."""
        self.refuse()
        end = None if timeout is None else time.monotonic() + timeout
        while self.rows and (end is None or time.monotonic() < end):
            time.sleep(0.01)
        self._manager.stop(block=True)
        self._watcher.join()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def num_running(self) -> int:
        return sum(bool(row.ids) for row in list(self.rows.values()))

    @property
    def num_waiting(self) -> int:
        return sum(not row.ids for row in list(self.rows.values()))

    def _watch(self) -> None:
        """Collect the manager's results, which the rows have already, and its errors."""
        while self._manager.is_running():
            found = self._manager.get_result(timeout=0.2)
            if found is not None and found.error is not None:
                self._fail([int(found.request_id)], found.error)
            fault = self._manager.background_thread_status.fatal_error
            if fault is not None:
                break
        self._closed = True
        self._fail(list(self.rows), "transformers' generation loop has ended")

    def _fail(self, numbers: Sequence[int], error: str) -> None:
        for number in numbers:
            row = self.rows.pop(number, None)
            if row is not None:
                get_logger().error("A generation failed: %s", error)
                row.fail(RuntimeError(error))


class Choice(ContinuousBatchingLogitsProcessor):
    """Logits processor that gives each row's chosen token the highest score, and appends it to the row."""

    supported_kwargs = {"row": int}  # noqa: RUF012 (as the base class declares it)
    ignored_kwargs = ()

    def __init__(self, batcher: ContinuousBatcher) -> None:
        self.batcher = batcher

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.fill_(NOBODY)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        # upstream: transformers 5.23.0 no issue: a processor finds its request's arguments in the scheduler's state
        numbers = [one.state.logit_processor_kwargs.get("row", NOBODY) for one in requests_with_new_token]
        return torch.tensor(numbers, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """[rows, V] -> the same; `tensor_arg` has the number of each row, and more behind it."""
        found = scores.clone()
        for place, number in enumerate(tensor_arg[: len(scores)].tolist()):
            row = self.batcher.rows.get(number)
            if row is None or row.finish_reason is not None:
                continue
            found[place] = next_scores(row, scores[place])
            if row.add(int(found[place].argmax())):
                self.batcher.leave(number)
        return found


def _config(model: Any, max_batch_size: int) -> Any:
    """Scheduler of one step at a time: the rows choose the next token, so no step may run ahead of them."""
    options: dict[str, Any] = {"max_requests_per_batch": max_batch_size}
    if model.device.type == "cpu":  # on a GPU the manager takes what is free
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096
        options["num_blocks"] = max_batch_size * -(-context // PAGE)
        options["max_batch_tokens"] = 2048
    size = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # as in transformers 5.17
    options[size] = PAGE
    return ContinuousBatchingConfig(use_async_batching=False, use_cuda_graph=False, **options)
