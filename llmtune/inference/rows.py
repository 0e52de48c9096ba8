"""One answer while it is written: its tokens, its text in pieces, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from llmtune.inference.sampling import Sampling
from llmtune.types import Encoded

if TYPE_CHECKING:
    from llmtune.inference.constraints import Constraint
    from llmtune.templates.chat import ChatTemplate

__all__ = ["FinishReason", "Row", "StopWords", "TokenLogprob", "TokenText", "Written", "cut_at", "held_back"]

FinishReason = Literal["stop", "length", "cancelled"]

HALF = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text with its log-probability, and its likeliest alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What a step, or the end, adds to an answer. The last one has a `finish_reason`.

    `end` is the place in the answer's `logprobs` up to which the text is told.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    end: int = 0


class TokenText:
    """Tokens to text, piece by piece; half a character waits for its other half."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._start = 0  # the pieces of some tokenizers depend on the token before
        self._told = 0

    def add(self, token: int) -> str:
        text = self.peek(token)
        self.ids.append(token)
        if not text or text.endswith(HALF):
            return ""
        self._start, self._told = self._told, len(self.ids)
        return text

    def peek(self, token: int) -> str:
        """What `token` would add to the text told so far."""
        return self._behind([*self.ids[self._start :], token])

    def rest(self) -> str:
        """What still waits at the end of the answer."""
        text = self._behind(self.ids[self._start :])
        self._start = self._told = len(self.ids)
        return text

    def _behind(self, ids: list[int]) -> str:
        before = self._decode(ids[: self._told - self._start])
        return self._decode(ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


class StopWords:
    """Holds back what may be the beginning of a stop word; ends at a whole one."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [word for word in words if word]
        self.found = False
        self._held = ""

    def add(self, piece: str) -> str:
        self._held += piece
        cut = cut_at(self._held, self.words)
        if cut != self._held:
            self.found, self._held = True, ""
            return cut
        keep = held_back(self._held, self.words)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def rest(self) -> str:
        told, self._held = self._held, ""
        return told


class Row:
    """One answer.

    Args:
        prompt: What it answers.
        template: Says where an answer stops.
        constraint: What its text has to be, if anything.
        tell: Is given each piece, on the thread that generates; it must not block.
    """

    def __init__(
        self,
        prompt: Encoded,
        sampling: Sampling,
        template: ChatTemplate,
        *,
        constraint: Constraint | None = None,
        tell: Callable[[Written], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.constraint = constraint
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.made_at = time.monotonic()
        self.first_token_at: float | None = None
        self.keeps: object = None
        """What must not go before it is written: the files of its images."""
        self._tell = tell
        self._template = template
        self._stop_ids = frozenset(template.stop_token_ids)
        self._text = TokenText(template.tokenizer)
        self._stops = StopWords([*template.stop_strings, *sampling.stop])
        self._generator: torch.Generator | None = None
        self._log_shares: torch.Tensor | None = None
        self._cancelled = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def stop_token_ids(self) -> list[int]:
        return sorted(self._stop_ids)

    @property
    def num_left(self) -> int:
        """Tokens that it may still have."""
        return self.sampling.max_new_tokens - len(self.ids)

    def cancel(self) -> None:
        """Nobody waits for it any more. From any thread."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    def generator(self, device: torch.device) -> torch.Generator | None:
        if self.sampling.seed is not None and self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.sampling.seed)
        return self._generator

    def keep_logprobs(self, log_shares: torch.Tensor) -> None:
        """Those of the next token, [V], before it is chosen."""
        self._log_shares = log_shares

    def allows(self, token: int) -> bool:
        """Whether the constraint can go on with a token."""
        assert self.constraint is not None
        if token in self._stop_ids:
            return self.constraint.is_complete
        text = self._text.peek(token)
        return bool(text) and self.constraint.after(text) is not None

    def single_characters(self) -> list[int]:
        """Tokens of one ASCII character each."""
        encode = self._template.tokenizer.convert_tokens_to_ids
        found = [encode(chr(code)) for code in range(33, 127)]
        ids = [self._template.tokenizer(chr(code), add_special_tokens=False)["input_ids"] for code in (32, 10)]
        unknown = self._template.tokenizer.unk_token_id
        return [one for one in found if one is not None and one != unknown] + [one[0] for one in ids if len(one) == 1]

    def add(self, token: int) -> bool:
        """Take the next token; True where the answer ends with it."""
        if self._cancelled:
            self.finish("cancelled")
        elif token in self._stop_ids:
            self.finish("stop")
        else:
            self._write(token)
        return self.finish_reason is not None

    def _write(self, token: int) -> None:
        self.first_token_at = self.first_token_at or time.monotonic()
        self.ids.append(token)
        self._log(token)
        piece = self._text.add(token)
        if self.constraint is not None:
            self.constraint = self.constraint.after(piece)
            assert self.constraint is not None, "only allowed tokens are chosen"
        told = self._stops.add(piece)
        if self._stops.found:
            self._say(told)
            self.finish("stop", flush=False)
        elif self.constraint is not None and self.constraint.is_complete:
            self._say(told)
            self.finish("stop")
        elif self.num_left <= 0:
            self._say(told)
            self.finish("length")
        else:
            self._say(told)

    def finish(self, reason: FinishReason, *, flush: bool = True) -> None:
        if self.finish_reason is not None:
            return
        rest = ""
        if flush and reason != "cancelled":
            rest = self._stops.add(self._text.rest())
            rest += "" if self._stops.found else self._stops.rest()
            self.pieces.append(rest)
        self.finish_reason = "stop" if self._stops.found else reason
        self.keeps = None
        if self._tell is not None:
            self._tell(Written(rest, self.finish_reason, len(self.logprobs)))

    def fail(self, error: Exception) -> None:
        """End it because the model could not go on."""
        if self.finish_reason is None:
            self.error = error
            self.finish("cancelled")

    def _say(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            if self._tell is not None:
                self._tell(Written(text, end=len(self.logprobs)))

    def _log(self, token: int) -> None:
        if self._log_shares is None or self.sampling.top_logprobs is None:
            return
        values, tokens = self._log_shares.topk(self.sampling.top_logprobs)
        texts = [str(self._template.tokenizer.decode([one])) for one in (token, *tokens.tolist())]
        top = tuple(zip(texts[1:], values.tolist(), strict=True))
        self.logprobs.append(TokenLogprob(texts[0], float(self._log_shares[token]), top))


def held_back(text: str, words: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of one of the words."""
    return max((size for word in words for size in range(1, len(word)) if text.endswith(word[:size])), default=0)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop word."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
