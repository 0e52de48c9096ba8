"""A row of `decode`: what is asked for, what has been drawn, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from llmtune.errors import ModelError
from llmtune.inference.draws import Draw, Uniforms, draw_tokens
from llmtune.inference.texts import StopAutomaton, StopWords, TokenText
from llmtune.templates.chat import ChatTemplate


class DecodeRequest(Protocol):
    """One response to sample; `rollouts.engine.RolloutRequest` is one, and says what its fields mean."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def seed(self) -> tuple[int, ...]: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def num_drawn(self) -> int: ...

    @property
    def stop(self) -> tuple[str, ...]: ...


@dataclass(slots=True)
class Decoded:
    """A sampled response.

    Attributes:
        ids: As sampled, the stop token included.
        logps: Log-probability of each id under the distribution that it was drawn from; see `draw_tokens`.
        finish_reason: `stop`, by a stop token or a stop word; `length`, cut at `max_tokens`.
    """

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "stop"


class StopRules:
    """Where the responses of a template stop: at a token, or at a text of several tokens.

    Args:
        words: Further texts.
    """

    def __init__(self, template: ChatTemplate, words: tuple[str, ...] = ()) -> None:
        single, several = template.split_stop_words(words) if words else ([], [])
        self.token_ids = frozenset([*template.stop_token_ids, *single])
        self._template = template
        texts = [*template.stop_strings, *several]
        self._automaton = StopAutomaton(texts) if texts else None
        self._others: dict[tuple[str, ...], StopRules] = {}

    def with_words(self, words: tuple[str, ...]) -> StopRules:
        """Return the rules with further texts; the same object for the same texts."""
        if not words:
            return self
        if words not in self._others:
            self._others[words] = StopRules(self._template, words)
        return self._others[words]

    def words(self) -> _Words | None:
        """Return the state of one response's stop words; None where the template has none of several tokens."""
        return None if self._automaton is None else _Words(self._template, self._automaton)


class _Words:
    """Whether the text of the tokens so far has a stop word in it."""

    def __init__(self, template: ChatTemplate, automaton: StopAutomaton) -> None:
        self._text = TokenText(template.tokenizer, template.thought_tokens)
        self._words = StopWords(automaton)

    def found(self, token: int, *, is_last: bool) -> bool:
        self._words.add(self._text.add(token))
        if is_last and not self._words.found:
            self._words.add(self._text.rest())
        return self._words.found


class Row:
    """One response while it is decoded.

    Args:
        number: Its place among the requests.
    """

    def __init__(self, number: int, request: DecodeRequest, stops: StopRules) -> None:
        self.number = number
        self.response = Decoded(finish_reason="stop" if request.max_tokens > 0 else "length")
        self.prompt_ids = request.prompt_ids
        self.max_tokens = request.max_tokens
        self.next_uniform = Uniforms(request.seed, request.num_drawn).next
        self.stop_ids = stops.token_ids
        self._words = stops.words()

    @property
    def last_id(self) -> int:
        return self.response.ids[-1]

    def add(self, token: int, logp: float) -> bool:
        """Append the next token; True where the response ends with it."""
        response = self.response
        response.ids.append(token)
        response.logps.append(logp)
        is_last = len(response.ids) >= self.max_tokens
        if token in self.stop_ids or (self._words is not None and self._words.found(token, is_last=is_last)):
            return True
        if is_last:
            response.finish_reason = "length"
        return is_last


def choose(rows: Sequence[Row], logits: Tensor, how: Draw) -> list[bool]:
    """Draw the next token of each row and append it; returns which rows end with it.

    Args:
        logits: [R, V], of the rows' last positions.

    Raises:
        ModelError: Logits are NaN or infinite.
    """
    uniforms = torch.tensor([row.next_uniform() for row in rows], dtype=torch.float64)
    ids, logps = draw_tokens(logits, uniforms, how)
    tokens, values = torch.stack([ids.double(), logps]).cpu().numpy()  # one transfer: ids are exact in fp64
    if not np.isfinite(values).all():
        raise ModelError(
            "The logits of a sampled response are NaN or infinite: the model has diverged. Resume from an earlier "
            "checkpoint with a lower --learning_rate."
        )
    found = zip(rows, tokens.astype(int).tolist(), values.tolist(), strict=True)
    return [row.add(token, logp) for row, token, logp in found]
