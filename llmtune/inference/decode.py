"""Many sampled responses, as ids: rows that end are replaced by new ones, and equal prompts are computed once.

For the responses that a model samples for its own training. What a row draws depends on its seed alone, so that its ids
are the same, up to rounding, for any number of rows at a time and in any company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from llmtune.inference.decode_forward import Forward, has_plain_cache
from llmtune.inference.decode_generate import decode_by_generate
from llmtune.inference.decode_rows import Decoded, DecodeRequest, Row, StopRules, choose
from llmtune.inference.draws import Draw
from llmtune.inference.row_cache import RowCache
from llmtune.templates.chat import ChatTemplate
from llmtune.utils.logging import log_once
from llmtune.utils.progress import progress_bar

PREFILL_TOKENS = 4096
"""Most tokens of prompts that are prefilled in one pass, padding included; at least one prompt."""

FREE_SHARE = 16
"""New rows join once a part of the rows of this size is free: each time costs a few copies per layer."""


class Decoder:
    """Samples responses of any causal language model of transformers, or a PEFT model of one.

    Args:
        template: Defines where a response stops.
        max_rows: Responses that are decoded at a time.
        autocast_dtype: The forward passes run under `torch.autocast` of it; None leaves them as they are.
    """

    def __init__(
        self,
        model: Any,
        template: ChatTemplate,
        how: Draw | None = None,
        *,
        max_rows: int = 64,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.how = how or Draw()
        self.max_rows = max_rows
        self._autocast_dtype = autocast_dtype
        self._stops = StopRules(template)
        self._forward = Forward(model, int(template.tokenizer.pad_token_id or 0))
        self._is_plain: bool | None = None

    def decode(self, requests: Sequence[DecodeRequest], *, quiet: bool = False) -> list[Decoded]:
        """Return one response for each request, in order. The caller sets `model.eval()` and `torch.no_grad()`.

        Args:
            quiet: No progress bar, which is shown on a terminal only.

        Raises:
            ModelError: Logits are NaN or infinite.
        """
        rows = [Row(number, one, self._stops.with_words(one.stop)) for number, one in enumerate(requests)]
        with self._autocast(), progress_bar(total=len(rows), desc="Responses", leave=False, quiet=quiet) as bar:
            wanted = [row for row in rows if row.max_tokens > 0]
            if wanted and self._has_plain_cache():
                _Batch(self._forward, wanted, self.how, self.max_rows, bar).run()
            elif wanted:
                decode_by_generate(
                    self.model,
                    wanted,
                    self.how,
                    max_rows=self.max_rows,
                    pad_token_id=self._forward.pad_token_id,
                    ended=bar.update,
                )
        return [row.response for row in rows]

    def _has_plain_cache(self) -> bool:
        if self._is_plain is None:
            self._is_plain = has_plain_cache(self._forward)
            if not self._is_plain:
                log_once(
                    f"{type(self._forward.inner).__name__} keeps more than keys and values of all positions, or takes "
                    f"no position_ids: responses are sampled in batches of {self.max_rows}, each until its longest "
                    "has ended."
                )
        return self._is_plain

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._autocast_dtype is None:
            return nullcontext()
        # Weights that are cast and cached here, without gradients, are not for the training in the caller's autocast.
        kind = self.model.device.type
        return torch.autocast(kind, dtype=self._autocast_dtype, cache_enabled=not torch.is_autocast_enabled(kind))


class _Prompts:
    """Prefilled prompts whose rows have not all joined yet."""

    def __init__(self, forward: Forward, groups: Sequence[list[Row]]) -> None:
        prompts = [group[0].prompt_ids for group in groups]
        logits, self.cache = forward.prefill(prompts)
        self.logits = logits.float()
        self.waiting = deque((place, row) for place, group in enumerate(groups) for row in group)

    def take(self, count: int) -> list[tuple[int, Row]]:
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]


class _Batch:
    """The rows that are decoded now, and those that wait: their prompts from the longest to the shortest."""

    def __init__(self, forward: Forward, rows: Sequence[Row], how: Draw, max_rows: int, bar: Any) -> None:
        self.forward = forward
        self.how = how
        self.max_rows = min(max_rows, len(rows))  # the cache has room for them all
        self.bar = bar
        self.groups = _groups(rows)
        self.prompts: _Prompts | None = None
        self.running: list[Row] = []
        self.cache: RowCache | None = None

    def run(self) -> None:
        while self._admit() or self.running:
            assert self.cache is not None
            logits = self.forward.step([row.response.ids[-1] for row in self.running], self.cache)
            self._leave(choose(self.running, logits, self.how))

    @property
    def _has_waiting(self) -> bool:
        return bool(self.groups or (self.prompts and self.prompts.waiting))

    def _admit(self) -> bool:
        """Fill the free rows, if they are enough; returns whether anything runs."""
        free = self.max_rows - len(self.running)
        if self.running and free < max(1, self.max_rows // FREE_SHARE):
            return True
        while self._has_waiting and len(self.running) < self.max_rows:
            if self.prompts is None or not self.prompts.waiting:
                self.prompts = None  # its KV is freed before the next is made
                self.prompts = _Prompts(self.forward, self._next_groups(self.max_rows - len(self.running)))
            self._join(self.prompts)
        return bool(self.running)

    def _next_groups(self, free: int) -> list[list[Row]]:
        """Return the groups to prefill: those that fill the free rows, within PREFILL_TOKENS."""
        longest = len(self.groups[0][0].prompt_ids)
        found = [self.groups.popleft()]
        count = len(found[0])
        while self.groups and count < free and (len(found) + 1) * longest <= PREFILL_TOKENS:
            found.append(self.groups.popleft())
            count += len(found[-1])
        return found

    def _join(self, prompts: _Prompts) -> None:
        """Draw the first token of rows that wait, as many as are free; those that go on join the batch."""
        taken = prompts.take(self.max_rows - len(self.running))
        places = torch.tensor([place for place, _ in taken], device=prompts.logits.device)
        ends = choose([row for _, row in taken], prompts.logits[places], self.how)
        self.bar.update(sum(ends))
        staying: dict[int, list[Row]] = {}
        for (place, row), end in zip(taken, ends, strict=True):
            if not end:
                staying.setdefault(place, []).append(row)
        for place, rows in staying.items():
            if self.cache is None:
                self.cache = RowCache(self.max_rows, len(prompts.cache.layers))
            self.cache.join(prompts.cache, place, len(rows[0].prompt_ids), len(rows))
            self.running += rows

    def _leave(self, ends: list[bool]) -> None:
        if not any(ends):
            return
        assert self.cache is not None
        gone = [number for number, end in enumerate(ends) if end]
        self.bar.update(len(gone))
        if not self._has_waiting:
            self.cache.finish_joining()
        self.running = [self.running[number] for number in self.cache.leave(gone)]


def _groups(rows: Sequence[Row]) -> deque[list[Row]]:
    """Return the rows of equal prompts together, the longest prompts first: in a pass, equal ones need no padding."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.prompt_ids), []).append(row)
    return deque(sorted(groups.values(), key=lambda group: -len(group[0].prompt_ids)))
