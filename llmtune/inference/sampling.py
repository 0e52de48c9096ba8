"""Sampling of the next token: each row of a batch by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from llmtune.arguments.groups import SamplingArguments
    from llmtune.inference.generation import Generation


NUM_TRIED = 128
"""Candidates that a constraint tries before it falls back to single characters."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling settings. The first fields are those of transformers' GenerationConfig.

    Attributes:
        seed: Gives the same text every time, in any batch; None draws from torch's global generator.
        stop: Texts that end the response, and are removed from it.
        top_logprobs: Return the log-probability of each token, and this many alternatives; None returns none.
        is_rollout: The response is trained on: log-probabilities are those of the distribution that a token is drawn
            from, after temperature and penalties, and the stop token has one too.
        frequency_penalty: Subtracted from a token's logit once per occurrence in the response.
        presence_penalty: Subtracted once if the token occurs in the response.
        logit_bias: (token id, bias added to its logit).
    """

    max_new_tokens: int = 2048
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    is_rollout: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, args: SamplingArguments) -> Sampling:
        """Return the settings of the generation flags. Temperature 0 takes the most likely token, as in servers."""
        return cls(
            max_new_tokens=args.max_new_tokens,
            do_sample=args.do_sample and args.temperature > 0,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            num_beams=getattr(args, "num_beams", 1),
            no_repeat_ngram_size=args.no_repeat_ngram_size,
        )


class RowSampler(LogitsProcessor):
    """Logits processor that gives each row's chosen token the highest score, so that `generate` takes the maximum.

    A sample is the maximum of the logits plus Gumbel noise of the row's own generator, independent of other rows.

    Args:
        rows: In the order of the batch.
        starts: Start of each row's prompt after its padding.
    """

    def __init__(self, rows: Sequence[Generation], starts: Sequence[int]) -> None:
        self.rows = rows
        self.starts = starts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, T], [B, V] -> [B, V]."""
        found = scores
        for number, (row, start) in enumerate(zip(self.rows, self.starts, strict=True)):
            if row.finish_reason is not None:
                continue
            logits = scores[number]
            chosen = next_scores(row, logits, input_ids[number, start:])
            if chosen is not logits:
                found = scores.clone() if found is scores else found
                found[number] = chosen
        return found


def next_scores(row: Generation, logits: Tensor, ids: Tensor | None = None) -> Tensor:
    """Return the scores of one row, [V]; its next token has the highest. `ids`: its prompt and response so far."""
    if row.sampling.top_logprobs is not None and not (row.sampling.is_rollout and row.sampling.do_sample):
        row.keep_logprobs(logits.log_softmax(-1))
    if _is_plain(row):
        return logits
    if ids is None and row.sampling.repetition_penalty != 1:
        ids = torch.tensor([*row.prompt.input_ids, *row.ids], device=logits.device)
    return _scores(row, ids, logits)


def is_greedy(row: Generation) -> bool:
    """Whether the next token is that of the highest logit, and nothing else is asked of it."""
    return _is_plain(row) and row.sampling.top_logprobs is None and not row.sampling.no_repeat_ngram_size


def _is_plain(row: Generation) -> bool:
    one = row.sampling
    penalties = one.frequency_penalty or one.presence_penalty or one.repetition_penalty != 1
    return not (one.do_sample or penalties or one.logit_bias or row.constraint is not None)


def _scores(row: Generation, ids: Tensor | None, logits: Tensor) -> Tensor:
    one = row.sampling
    wanted = _penalized(row, ids, logits)
    scores = wanted
    if one.do_sample:
        kept = _nucleus(wanted / one.temperature, one.top_k, one.top_p)
        if one.top_logprobs is not None and one.is_rollout:
            row.keep_logprobs(kept.log_softmax(-1))
        noise = torch.empty_like(kept).exponential_(generator=row.generator(kept.device))
        scores = kept - noise.log()
    return scores if row.constraint is None else _allowed(row, scores, wanted)


def _penalized(row: Generation, ids: Tensor | None, logits: Tensor) -> Tensor:
    one = row.sampling
    if one.repetition_penalty != 1 and ids is not None:
        seen = ids.unique()
        values = logits[seen]
        values = torch.where(values < 0, values * one.repetition_penalty, values / one.repetition_penalty)
        logits = logits.index_copy(0, seen, values)
    if (one.frequency_penalty or one.presence_penalty) and row.ids:
        tokens, counts = torch.tensor(row.ids, device=logits.device).unique(return_counts=True)
        penalty = counts.to(logits.dtype) * one.frequency_penalty + one.presence_penalty
        logits = logits.index_add(0, tokens, -penalty)
    if one.logit_bias:
        tokens, added = zip(*one.logit_bias, strict=True)
        added_values = torch.tensor(added, device=logits.device, dtype=logits.dtype)
        logits = logits.index_add(0, torch.tensor(tokens, device=logits.device), added_values)
    return logits


def _nucleus(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set all logits to -inf but the `top_k` highest, and of these the fewest that make up `top_p`."""
    if not top_k and top_p >= 1:
        return logits
    values, tokens = logits.topk(min(top_k, len(logits)) if top_k else len(logits))
    if top_p < 1:
        shares = values.softmax(-1)
        before = shares.cumsum(-1) - shares
        keep = before < top_p
        keep[0] = True
        values, tokens = values[keep], tokens[keep]
    return torch.full_like(logits, -torch.inf).index_copy(0, tokens, values)


def _allowed(row: Generation, scores: Tensor, logits: Tensor) -> Tensor:
    """Set all scores to -inf but that of the best token that the row's constraint allows.

    The best allowed token by noisy scores is a sample from the allowed ones. If no candidate is allowed, the logits
    decide; if no likely one is, a token of a single character, of which some is always allowed.
    """
    best = scores.topk(min(NUM_TRIED, len(scores)))
    drawn = [token for value, token in zip(*map(Tensor.tolist, best), strict=True) if value > -torch.inf]
    for candidates in (drawn, logits.topk(min(NUM_TRIED, len(logits))).indices.tolist(), row.single_characters()):
        token = next((token for token in candidates if row.allows(token)), None)
        if token is not None:
            return torch.full_like(scores, -torch.inf).index_fill(0, torch.tensor([token], device=scores.device), 0.0)
    raise AssertionError("no token can go on with what the constraint asks for")
