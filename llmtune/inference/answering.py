"""Responses for many rows, in their order: a row that ends makes room for the next at once.

Models whose cache has rows that cannot be moved, images, and beam search are generated batch by batch, each to its
longest response.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from llmtune.inference.decode_forward import Forward, has_plain_cache
from llmtune.inference.generation import Generation
from llmtune.inference.refill import RefillBatch
from llmtune.inference.sampling import Sampling, is_greedy, next_scores
from llmtune.planning.kv import rows_that_fit
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger, log_once

if TYPE_CHECKING:
    from llmtune.inference.engine import Engine


def generations(engine: Engine, rows: Sequence[Generation], *, max_rows: int | None = None) -> Iterator[Generation]:
    """Yield the rows in order, each as soon as it and those before it have ended.

    Args:
        max_rows: Rows at a time; None: as many as memory allows.
    """
    if max_rows is None:
        longest = max((len(row.prompt.input_ids) + row.num_left for row in rows), default=1)
        max_rows = rows_that_fit(engine.model, longest)
    if any(row.prompt.media for row in rows) or not _moves_rows(engine):
        for start in range(0, len(rows), max_rows):
            batch = rows[start : start + max_rows]
            engine.advance(batch)
            yield from batch
        return
    yield from _refilled(engine, rows, max_rows)


def with_seeds(sampling: Sampling, count: int, seeds: Sequence[int] | None = None) -> list[Sampling]:
    """Return the settings of each row: sampled ones get a seed each, so that they do not depend on their company."""
    if not sampling.do_sample or sampling.seed is not None:
        return [sampling] * count
    seeds = torch.randint(2**62, (count,)).tolist() if seeds is None else seeds
    return [replace(sampling, seed=seed) for seed in seeds]


def _moves_rows(engine: Engine) -> bool:
    if engine.moves_rows is None:
        with engine.using(None):
            engine.moves_rows = has_plain_cache(Forward(engine.model, engine.pad_token_id))
        if not engine.moves_rows:
            log_once(
                f"{type(engine.model).__name__} keeps more than keys and values of all positions: responses are "
                "generated batch by batch, each until its longest has ended."
            )
    return engine.moves_rows


class _Row:
    """A generation in a batch."""

    def __init__(self, row: Generation) -> None:
        self.row = row

    @property
    def prompt_ids(self) -> list[int]:
        return list(self.row.prompt.input_ids) + self.row.ids

    @property
    def last_id(self) -> int:
        return self.row.ids[-1]


def _refilled(engine: Engine, rows: Sequence[Generation], max_rows: int) -> Iterator[Generation]:
    batch: RefillBatch[_Row] | None = None
    for wanted in rows:
        while wanted.finish_reason is None:
            # entered anew for each row: whoever receives it must not find the model in another mode
            with engine.using(None):
                try:
                    if batch is None:
                        left = [_Row(row) for row in rows if row.finish_reason is None]
                        batch = RefillBatch(Forward(engine.model, engine.pad_token_id), left, _choose, max_rows)
                    while wanted.finish_reason is None:
                        batch.step()
                except torch.OutOfMemoryError:
                    if max_rows == 1:
                        raise
                    batch = None
                    max_rows = max(1, max_rows // 2)
                    get_logger().warning("Out of memory: continuing with %d rows at a time.", max_rows)
            if batch is None:
                accelerator().empty_cache()
        yield wanted


def _choose(rows: Sequence[_Row], logits: Tensor) -> list[bool]:
    """Append the next token of each row; returns which rows end with it. `logits`: [R, V]."""
    tokens = logits.argmax(-1).tolist()
    return [
        one.row.add(token if is_greedy(one.row) else int(_scores(one, logits[number]).argmax()))
        for number, (one, token) in enumerate(zip(rows, tokens, strict=True))
    ]


def _scores(one: _Row, logits: Tensor) -> Tensor:
    ids: Any = None
    if one.row.sampling.no_repeat_ngram_size:
        ids = torch.tensor(one.prompt_ids, device=logits.device)
        limit = NoRepeatNGramLogitsProcessor(one.row.sampling.no_repeat_ngram_size)
        logits = limit(ids[None], logits[None])[0]
    return next_scores(one.row, logits, ids)
