"""One response during generation: its tokens, its text in pieces, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from llmtune.inference.sampling import Sampling
from llmtune.inference.texts import HALF, Frame, StopAutomaton, StopWords, TokenText
from llmtune.types import Encoded

if TYPE_CHECKING:
    from llmtune.inference.constraints import Constraint
    from llmtune.templates.chat import ChatTemplate


FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text with its log-probability, and its most likely alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """Piece of a response, added by a step or by the end. The last one has a `finish_reason`.

    `end`: position in the response's `logprobs` up to which the text has been emitted.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    end: int = 0


class Generation:
    """One response during generation.

    Args:
        prompt: Its prompt.
        template: Defines where a response stops.
        frame: Text that the model writes around it; not part of its text.
        constraint: Constraint on its text, if any.
        stops: The automaton of the template's and the settings' stop words, which rows of one request share.
        on_piece: Receives each piece, on the generating thread; it must not block.
    """

    def __init__(
        self,
        prompt: Encoded,
        sampling: Sampling,
        template: ChatTemplate,
        *,
        frame: tuple[str, str] = ("", ""),
        constraint: Constraint | None = None,
        stops: StopAutomaton | None = None,
        on_piece: Callable[[Written], None] | None = None,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.constraint = constraint
        self.ids: list[int] = []
        self.stop_token: int | None = None
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.made_at = time.monotonic()
        self.first_token_at: float | None = None
        self.keeps: object = None
        """Objects to keep alive during generation: the files of its images."""
        self._on_piece = on_piece
        self._template = template
        self._stop_ids = frozenset(template.stop_token_ids)
        self._text = TokenText(template.tokenizer, template.thought_tokens)
        self._stops = StopWords(stops or StopAutomaton([*template.stop_strings, *sampling.stop]))
        self._frame = Frame(*frame)
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
        """Number of tokens left."""
        return self.sampling.max_new_tokens - len(self.ids)

    def cancel(self) -> None:
        """Cancel the row. Thread-safe."""
        self._cancelled = True

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    def generator(self, device: torch.device) -> torch.Generator | None:
        if self.sampling.seed is not None and self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.sampling.seed)
        return self._generator

    def keep_logprobs(self, log_shares: torch.Tensor) -> None:
        """Receive the log-probabilities of the next token, [V], before it is chosen."""
        self._log_shares = log_shares

    def allows(self, token: int) -> bool:
        """Return whether the constraint allows a token."""
        assert self.constraint is not None
        if token in self._stop_ids:
            return self.constraint.is_complete
        return self._may_go_on(token) and self._goes_on(token)

    def _may_go_on(self, token: int) -> bool:
        """Return whether a token could be allowed, by its own text, which is cached: in most states nearly none can.

        After others it may have a blank before it. A partial character is checked in context.
        """
        assert self.constraint is not None
        texts = self._template.token_texts
        if token not in texts:
            texts[token] = str(self._template.tokenizer.decode([token], skip_special_tokens=True))
        text = texts[token]
        if not text or HALF in text:
            return True
        return self.constraint.after(text) is not None or self.constraint.after(f" {text}") is not None

    def _goes_on(self, token: int) -> bool:
        assert self.constraint is not None
        text = self._text.peek(token)
        return bool(text) and self.constraint.after(text) is not None

    def single_characters(self) -> list[int]:
        """Tokens of one ASCII character each."""
        if self._template.single_characters is None:
            self._template.single_characters = self._find_single_characters()
        return self._template.single_characters

    def _find_single_characters(self) -> list[int]:
        encode = self._template.tokenizer.convert_tokens_to_ids
        found = [encode(chr(code)) for code in range(33, 127)]
        ids = [self._template.tokenizer(chr(code), add_special_tokens=False)["input_ids"] for code in (32, 10)]
        unknown = self._template.tokenizer.unk_token_id
        return [one for one in found if one is not None and one != unknown] + [one[0] for one in ids if len(one) == 1]

    def add(self, token: int) -> bool:
        """Append the next token; True where the response ends with it."""
        if self._cancelled:
            self.finish("cancelled")
        elif token in self._stop_ids:
            self.stop_token = token
            if self.sampling.is_rollout:
                self._log(token)
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
        self._say(self._frame.add(self._stops.add(piece)))
        if self._stops.found or (self.constraint is not None and self.constraint.is_complete):
            self.finish("stop")
        elif self.num_left <= 0:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        if self.finish_reason is not None:
            return
        rest = ""
        if reason != "cancelled":
            last = "" if self._stops.found else self._stops.add(self._text.rest())
            last += "" if self._stops.found else self._stops.rest()
            rest = self._frame.add(last) + self._frame.rest()
            self.pieces.append(rest)
        self.finish_reason = "stop" if self._stops.found else reason
        self.keeps = None
        if self._on_piece is not None:
            self._on_piece(Written(rest, self.finish_reason, len(self.logprobs)))

    def fail(self, error: Exception) -> None:
        """End it with an error of the model."""
        if self.finish_reason is None:
            self.error = error
            self.finish("cancelled")

    def _say(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            if self._on_piece is not None:
                self._on_piece(Written(text, end=len(self.logprobs)))

    def _log(self, token: int) -> None:
        if self._log_shares is None or self.sampling.top_logprobs is None:
            return
        values, tokens = self._log_shares.topk(self.sampling.top_logprobs)
        texts = [str(self._template.tokenizer.decode([one])) for one in (token, *tokens.tolist())]
        top = tuple(zip(texts[1:], values.tolist(), strict=True))
        self.logprobs.append(TokenLogprob(texts[0], float(self._log_shares[token]), top))
