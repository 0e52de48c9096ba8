"""Encode: rendered pieces become token ids and labels.

The whole text is tokenised once, as a server does it, and the learned spans are found by their offsets. Three
things interrupt a text: token ids that the template gives, a content with the spelling of a control token, and the
start of a learned answer inside a token, where a server's prompt would end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmtune.errors import TemplateError
from llmtune.templates.template import Piece
from llmtune.types import IGNORE_INDEX, Encoded

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

__all__ = ["Part", "Sample", "TextEncoder"]

ANCHOR = "\n"
"""Stands before a text that goes on; most tokenizers never join it with what follows."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch that is tokenised as one: text, or ids that need no tokenising.

    `learned`: spans of the text in characters. `plain`: the spelling of a control token is only text. `continued`: it
    goes on in the middle of a text, so a tokenizer that puts a blank before each text must not do so here.
    """

    text: str = ""
    ids: tuple[int, ...] | None = None
    learned: tuple[tuple[int, int], ...] = ()
    plain: bool = False
    continued: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """The parts of one sequence. `last_answer`: (part, character) where its last learned answer begins."""

    parts: tuple[Part, ...]
    last_answer: tuple[int, int] | None = None
    num_plain: int = 0


@dataclass(slots=True)
class _Tokens:
    ids: Sequence[int]
    learned: list[tuple[int, int]] = field(default_factory=list)
    straddled: list[int] = field(default_factory=list)
    """Characters at which a learned span begins or ends inside a token."""


class TextEncoder:
    """One tokenizer's way from pieces to ids; many samples at a time, on the tokenizer's own threads.

    Args:
        tokenizer: A transformers tokenizer. One without offsets (a slow one) is asked again for each border.
        control_as_text: Encode the spelling of a special token as plain text where it stands in the data.
    """

    def __init__(self, tokenizer: Any, *, control_as_text: bool = True) -> None:
        self.tokenizer = tokenizer
        self._backend: Backend | None = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        self._lock = threading.Lock()
        self._control = _control_pattern(tokenizer) if control_as_text else None
        anchor = self._ids_of(ANCHOR)
        self._anchor = anchor if self._ids_of(ANCHOR + "a") != [*anchor, *self._ids_of("a")] else None

    def sample(self, pieces: Sequence[Piece]) -> Sample:
        """Join pieces into parts that are tokenised apart."""
        parts: list[Part] = []
        last_answer: tuple[int, int] | None = None
        turn: int | None = None
        for piece in pieces:
            if isinstance(piece.content, tuple):
                ids = self._resolve(piece.content)
                parts.append(Part(ids=ids, learned=((0, len(ids)),) if piece.learned else ()))
                position = 0
            elif piece.from_data and self._control is not None and self._control.search(piece.content):
                parts.append(Part(piece.content, learned=_span(piece, 0), plain=True))
                position = 0
            else:
                if not parts or parts[-1].ids is not None or parts[-1].plain:
                    parts.append(Part())
                position = len(parts[-1].text)
                parts[-1] = _append(parts[-1], piece)
            if piece.learned and piece.turn != turn:
                last_answer = (len(parts) - 1, position)
            turn = piece.turn if piece.learned else None
        return Sample(tuple(parts), last_answer, sum(part.plain for part in parts))

    def control_spans(self, text: str, contents: Sequence[str]) -> list[tuple[int, int]]:
        """Where in a text those of the contents stand, in order, that hold the spelling of a control token."""
        spans: list[tuple[int, int]] = []
        at = 0
        for content in contents:
            if self._control is None or not self._control.search(content):
                continue
            for spelling in (content, content.strip()):
                start = text.find(spelling, at)
                if start >= 0:
                    at = start + len(spelling)
                    spans.append((start, at))
                    break
        return spans

    def encode(self, samples: Sequence[Sample]) -> list[Encoded | None]:
        """Tokenise samples in one batch.

        Returns:
            An Encoded for each; None where a learned span other than the last answer begins or ends inside a token:
            then no one sequence gives all the answers the context that a server would.
        """
        tokens = iter(self._tokenize([part for sample in samples for part in sample.parts]))
        return [self._assemble(sample, [next(tokens) for _ in sample.parts]) for sample in samples]

    def _assemble(self, sample: Sample, tokens: Sequence[_Tokens]) -> Encoded | None:
        straddled = [(index, at) for index, found in enumerate(tokens) for at in found.straddled]
        if straddled:
            return self.encode([_split_at(sample)])[0] if straddled == [sample.last_answer] else None
        ids: list[int] = []
        labels: list[int] = []
        for found in tokens:
            ids += found.ids
            own = [IGNORE_INDEX] * len(found.ids)
            for start, end in found.learned:
                own[start:end] = found.ids[start:end]
            labels += own
        if labels:
            labels[0] = IGNORE_INDEX
        return Encoded(ids, labels)

    def _tokenize(self, parts: Sequence[Part]) -> list[_Tokens]:
        if any(part.continued for part in parts) and self._anchor is not None:
            return [self._tokenize_continued(part) if part.continued else self._tokenize([part])[0] for part in parts]
        if self._backend is None:
            return [self._tokenize_by_prefixes(part) for part in parts]
        texts = [part.text for part in parts if part.ids is None and not part.plain]
        with self._exact_backend(plain=False) as backend:
            encodings = iter(backend.encode_batch(texts, add_special_tokens=False))
        found: list[_Tokens] = []
        for part in parts:
            if part.ids is not None:
                found.append(_Tokens(part.ids, list(part.learned)))
            elif part.plain:
                with self._exact_backend(plain=True) as backend:
                    found.append(_locate(part, backend.encode(part.text, add_special_tokens=False)))
            else:
                found.append(_locate(part, next(encodings)))
        return found

    def _tokenize_continued(self, part: Part) -> _Tokens:
        """Behind an anchor, whose tokens are dropped: what a tokenizer puts before a text stands before the anchor."""
        size = len(ANCHOR)
        shifted = tuple((start + size, end + size) for start, end in part.learned)
        found = self._tokenize([replace(part, text=ANCHOR + part.text, learned=shifted, continued=False)])[0]
        anchor = self._anchor or []
        if list(found.ids[: len(anchor)]) != anchor:  # the anchor and the text share a token
            return self._tokenize([replace(part, continued=False)])[0]
        learned = [(start - len(anchor), end - len(anchor)) for start, end in found.learned]
        return _Tokens(found.ids[len(anchor) :], learned, [at - size for at in found.straddled])

    def _ids_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _exact_backend(self, *, plain: bool) -> Iterator[Backend]:
        """The Rust tokenizer without truncation, padding and post-processor; that one trims white space off offsets."""
        backend = self._backend
        assert backend is not None
        with self._lock:
            processor, special = backend.post_processor, backend.encode_special_tokens
            try:
                backend.no_truncation()
                backend.no_padding()
                backend.post_processor = None
                backend.encode_special_tokens = plain
                yield backend
            finally:
                backend.post_processor, backend.encode_special_tokens = processor, special

    def _tokenize_by_prefixes(self, part: Part) -> _Tokens:
        """For tokenizers without offsets: a border lies where the ids of the text before it begin the whole's."""
        if part.ids is not None:
            return _Tokens(part.ids, list(part.learned))
        options = {"split_special_tokens": True} if part.plain else {}

        def ids_of(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

        return _locate_by_prefixes(part, ids_of)

    def _resolve(self, context: tuple[int | str, ...]) -> tuple[int, ...]:
        ids: list[int] = []
        for item in context:
            token = item if isinstance(item, int) else getattr(self.tokenizer, item, None)
            if not isinstance(token, int):
                raise TemplateError(f"the template needs the tokenizer's {item}, which this tokenizer does not have")
            ids.append(token)
        return tuple(ids)


def _locate(part: Part, encoding: Encoding) -> _Tokens:
    """Learned characters to learned tokens."""
    ids = encoding.ids
    found = _Tokens(ids)

    def border(at: int) -> int:
        """The first token at or after a character."""
        if at >= len(part.text):
            return len(ids)
        token = encoding.char_to_token(at)
        if token is None:  # a character that the normaliser dropped
            return next((index for index, (start, _) in enumerate(encoding.offsets) if start >= at), len(ids))
        span = encoding.token_to_chars(token)
        if span is not None and span[0] < at:
            found.straddled.append(at)
        return int(token)

    found.learned = [(border(start), border(end)) for start, end in part.learned]
    return found


def _locate_by_prefixes(part: Part, ids_of: Callable[[str], list[int]]) -> _Tokens:
    found = _Tokens(ids_of(part.text))

    def border(at: int) -> int:
        before = ids_of(part.text[:at]) if at else []
        if list(found.ids[: len(before)]) != before:
            found.straddled.append(at)
        return len(before)

    found.learned = [
        (border(start), border(end) if end < len(part.text) else len(found.ids)) for start, end in part.learned
    ]
    return found


def _split_at(sample: Sample) -> Sample:
    """Tokenise what stands before the last answer apart from the answer, as a prompt is."""
    assert sample.last_answer is not None
    index, at = sample.last_answer
    part = sample.parts[index]
    before = replace(part, text=part.text[:at], learned=tuple(span for span in part.learned if span[1] <= at))
    after = tuple((start - at, end - at) for start, end in part.learned if start >= at)
    answer = replace(part, text=part.text[at:], learned=after, continued=True)
    return Sample((*sample.parts[:index], before, answer, *sample.parts[index + 1 :]), (index + 1, 0), sample.num_plain)


def _append(part: Part, piece: Piece) -> Part:
    assert isinstance(piece.content, str)
    start = len(part.text)
    learned = part.learned
    if piece.learned:
        spans = _span(piece, start)
        if learned and learned[-1][1] == start:
            spans = ((learned[-1][0], start + len(piece.content)),)
            learned = learned[:-1]
        learned = (*learned, *spans)
    return Part(part.text + piece.content, learned=learned)


def _span(piece: Piece, start: int) -> tuple[tuple[int, int], ...]:
    return ((start, start + len(piece.content)),) if piece.learned and piece.content else ()


def _control_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None
