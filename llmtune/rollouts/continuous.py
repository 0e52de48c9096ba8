"""Rollouts by transformers' continuous batching: a paged cache, rows that join and leave at every step.

It chooses the same tokens as `OwnEngine`, from the same uniform numbers, as far as the logits agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch

from llmtune.errors import LlmtuneError, ModelError
from llmtune.inference.continuous import Choice, ContinuousBatcher
from llmtune.inference.decode_rows import Row, StopRules, choose
from llmtune.inference.draws import Draw
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.models.packed_attention import VARLEN
from llmtune.rollouts.engine import Rollout, RolloutEngine, RolloutRequest
from llmtune.rollouts.own import generating
from llmtune.templates.chat import ChatTemplate
from llmtune.types import Encoded
from llmtune.utils.progress import progress_bar


class ContinuousEngine(RolloutEngine):
    """Samples with the trained model as it is, by transformers' scheduler.

    The scheduler and its cache are made anew for each sample: blocks of prompts that it shares would have the KV of
    former weights, and its memory is free for the training in between.

    `is_exact` is false: attention over pages sums in another order than that of the training, and the passes run in a
    thread of the scheduler's, where the training's autocast does not reach.

    Args:
        model: Returns the model, without the wrapper of a distributed run; asked at each sample.
        template: Bound to the model's tokenizer; defines where a response stops.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Draw among the k most likely tokens; 0 is all.
        top_p: Of these, among the fewest that make up this share.
        max_rows: Responses that are decoded at a time.
        quiet: No progress bar, which is shown on a terminal only.
    """

    is_exact = False

    def __init__(
        self,
        model: Callable[[], Any],
        template: ChatTemplate,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        max_rows: int = 64,
        quiet: bool = False,
    ) -> None:
        self._model = model
        self._template = template
        self._stops = StopRules(template)
        self._draw = Draw(temperature=temperature, top_k=top_k, top_p=top_p)
        self._max_rows = max_rows
        self._quiet = quiet

    def sample(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """Return one rollout for each request, in order; the model is in the mode that it was in, afterwards.

        Raises:
            UsageError: transformers is too old, or it is a vision model.
            ModelError: The scheduler failed.
        """
        if not requests:
            return []
        rows = [_Asked(Row(number, one, self._stops.with_words(one.stop))) for number, one in enumerate(requests)]
        wanted = [row for row in rows if row.row.max_tokens > 0]
        model = self._model()
        with (
            generating(model),
            _with_paged_attention(model),
            progress_bar(total=len(rows), desc="Responses", leave=False, quiet=self._quiet) as bar,
        ):
            batcher = _Batcher(Engine(model, self._template), self._max_rows, len(rows), self._draw, bar.update)
            try:
                # A batcher reads of a row what `_Asked` has.
                batcher.submit(cast("list[Generation]", wanted))
            finally:
                batcher.close()
        for row in rows:
            if row.error is not None:
                raise row.error
        return [Rollout(one.row.response.ids, one.row.response.logps, one.row.response.finish_reason) for one in rows]

    def update(self, step: int) -> None:
        """Do nothing: the weights are those of the trained model."""

    def close(self) -> None:
        """Do nothing: a sample leaves nothing behind."""


@contextmanager
def _with_paged_attention(model: Any) -> Iterator[None]:
    """Exchange the attention of packed sequences, which has no pages, for sdpa's."""
    before = str(model.config._attn_implementation)
    if before != VARLEN:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class _Asked:
    """A row as `ContinuousBatcher` sees it."""

    is_cancelled = False

    def __init__(self, row: Row) -> None:
        self.row = row
        self.prompt = Encoded(list(row.prompt_ids))
        self.num_left = row.max_tokens
        self.stop_token_ids = sorted(row.stop_ids)
        self.finish_reason: Literal["stop", "length"] | None = None
        self.error: LlmtuneError | None = None

    @property
    def ids(self) -> list[int]:
        return self.row.response.ids

    def fail(self, error: Exception) -> None:
        if isinstance(error, LlmtuneError):
            self.error = error
        else:
            text = f"Continuous batching failed: {error}. Sample with the model's own decode loop instead."
            self.error = ModelError(text)


class _SeededChoice(Choice):
    """Logits processor that draws all rows' tokens at once, by their uniform numbers."""

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """[rows, V] -> the same; `tensor_arg` has the number of each row, and more behind it."""
        batcher = cast("_Batcher", self.batcher)
        numbers = tensor_arg[: len(scores)].tolist()
        asked = {place: cast("Any", row) for place, number in enumerate(numbers) if (row := batcher.rows.get(number))}
        if not asked:
            return scores
        places = torch.tensor(list(asked), device=scores.device)
        try:
            ends = choose([one.row for one in asked.values()], scores[places], batcher.draw)
        except ModelError as err:
            for one in asked.values():
                one.error = err
            ends = [True] * len(asked)
        tokens = torch.tensor([one.ids[-1] if one.ids else 0 for one in asked.values()], device=scores.device)
        found = scores.clone()
        found[places] = -torch.inf
        found[places, tokens] = 0.0
        for (place, one), end in zip(asked.items(), ends, strict=True):
            if end:
                one.finish_reason = one.row.response.finish_reason
                batcher.leave(numbers[place])
        batcher.ended(sum(ends))
        return found


class _Batcher(ContinuousBatcher):
    def __init__(self, engine: Engine, max_rows: int, num_rows: int, draw: Draw, ended: Callable[[int], Any]) -> None:
        self.draw = draw
        self.ended = ended
        super().__init__(engine, max_batch_size=max_rows, max_queue=num_rows)

    def choice(self) -> Choice:
        return _SeededChoice(self)
