"""Encode rendered pieces into token ids and labels.

The whole text is tokenised once, as a server does it, and the trainable spans are found by their offsets. Three
things split a text: token ids given by the template, a content that contains a control token's spelling, and the
start of a trainable turn inside a token, where a server's prompt would end.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmtune.errors import TemplateError
from llmtune.templates.fast_bpe import FastBPE, fast_bpe
from llmtune.templates.locate import TextPart, Tokens, locate, locate_by_bytes, locate_by_prefixes
from llmtune.templates.pieces import Piece
from llmtune.types import IGNORE_INDEX, Encoded, TruncationStrategy

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


MANY_TEXTS = 5000
"""Number of texts from which the fast BPE saves more than its preparation costs (a second, more the first time)."""

ANCHOR = "\n"
"""Put before a continued text; most tokenizers never merge it with the text that follows."""


@dataclass(frozen=True, slots=True)
class TextParts:
    """The parts of one sequence. `last_answer`: (part, character) where its last trainable turn begins."""

    parts: tuple[TextPart, ...]
    last_answer: tuple[int, int] | None = None
    num_plain: int = 0


class TextEncoder:
    """Encoder from pieces to ids for one tokenizer; many samples at a time, on the tokenizer's own threads.

    Args:
        tokenizer: A transformers tokenizer. A slow one, without offsets, is called again for each border.
        control_as_text: Encode the spelling of a special token in the data as plain text.
    """

    def __init__(self, tokenizer: Any, *, control_as_text: bool = True) -> None:
        self.tokenizer = tokenizer
        self._backend: Backend | None = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        self._lock = threading.Lock()
        self._fast: FastBPE | None = None
        self._control = _control_pattern(tokenizer) if control_as_text else None
        anchor = self._ids_of(ANCHOR)
        self._anchor = anchor if self._ids_of(ANCHOR + "a") != [*anchor, *self._ids_of("a")] else None

    def expect(self, num_texts: int) -> None:
        """Prepare for this many texts: many are worth the fast BPE, where the tokenizer allows it."""
        if self._fast is None and num_texts >= MANY_TEXTS:
            self._fast = fast_bpe(self.tokenizer)

    def sample(self, pieces: Sequence[Piece]) -> TextParts:
        """Join pieces into parts that are tokenised separately."""
        parts: list[TextPart] = []
        open_text = _OpenText()
        last_answer: tuple[int, int] | None = None
        turn: int | None = None
        num_plain = 0
        for piece in pieces:
            position = 0
            if isinstance(piece.content, tuple):
                open_text.close_into(parts)
                ids = self._resolve(piece.content)
                spans = _span(piece, 0, len(ids))
                parts.append(TextPart(ids=ids, trainable=spans, weights=_weights(piece, spans)))
                place = len(parts) - 1
            elif piece.from_data and self._control is not None and self._control.search(piece.content):
                open_text.close_into(parts)
                spans, continued = _span(piece, 0, len(piece.content)), _goes_on(parts)
                weights = _weights(piece, spans)
                parts.append(TextPart(piece.content, trainable=spans, plain=True, continued=continued, weights=weights))
                place = len(parts) - 1
                num_plain += 1
            else:
                position = open_text.length
                open_text.add(piece)
                place = len(parts)
            if piece.trainable and piece.turn != turn:
                last_answer = (place, position)
            turn = piece.turn if piece.trainable else None
        open_text.close_into(parts)
        return TextParts(tuple(parts), last_answer, num_plain)

    def control_spans(self, text: str, contents: Sequence[str]) -> list[tuple[int, int]]:
        """Return the spans, in a text, of the contents that contain a control token's spelling, in order."""
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

    def encode(self, samples: Sequence[TextParts]) -> list[Encoded | None]:
        """Tokenise samples in one batch.

        Returns:
            An Encoded for each; None where a trainable span other than the last turn begins or ends inside a token:
            then no single sequence gives all turns the context that a server would.
        """
        tokens = iter(self._tokenize([part for sample in samples for part in sample.parts]))
        return [self._assemble(sample, [next(tokens) for _ in sample.parts]) for sample in samples]

    def _assemble(self, sample: TextParts, tokens: Sequence[Tokens]) -> Encoded | None:
        straddled = [(index, at) for index, found in enumerate(tokens) for at in found.straddled]
        if straddled:
            return self.encode([_split_at(sample)])[0] if straddled == [sample.last_answer] else None
        ids: list[int] = []
        labels: list[int] = []
        weights = (
            [1.0] * sum(len(found.ids) for found in tokens) if any(part.weights for part in sample.parts) else None
        )
        for part, found in zip(sample.parts, tokens, strict=True):
            own = [IGNORE_INDEX] * len(found.ids)
            for start, end in found.trainable:
                own[start:end] = found.ids[start:end]
            if weights is not None:
                for (start, end), weight in zip(found.trainable, part.weights, strict=bool(part.weights)):
                    weights[len(ids) + start : len(ids) + end] = [weight] * (end - start)
            ids += found.ids
            labels += own
        if labels:
            labels[0] = IGNORE_INDEX
        return Encoded(ids, labels, weights=weights)

    def _tokenize(self, parts: Sequence[TextPart]) -> list[Tokens]:
        if any(part.continued for part in parts) and self._anchor is not None:
            return [self._tokenize_continued(part) if part.continued else self._tokenize([part])[0] for part in parts]
        if self._backend is None:
            return [self._tokenize_by_prefixes(part) for part in parts]
        fast = self._fast
        quick = [fast is not None and part.ids is None and not part.plain and fast.takes(part.text) for part in parts]
        texts = [
            p.text for p, is_quick in zip(parts, quick, strict=True) if not is_quick and p.ids is None and not p.plain
        ]
        with self._exact_backend(plain=False) as backend:
            encodings = iter(backend.encode_batch(texts, add_special_tokens=False))
        found: list[Tokens] = []
        for part, is_quick in zip(parts, quick, strict=True):
            if part.ids is not None:
                found.append(Tokens(part.ids, list(part.trainable)))
            elif is_quick and fast is not None:
                found.append(locate_by_bytes(part, fast))
            elif part.plain:
                with self._exact_backend(plain=True) as backend:
                    found.append(locate(part, backend.encode(part.text, add_special_tokens=False)))
            else:
                found.append(locate(part, next(encodings)))
        return found

    def _tokenize_continued(self, part: TextPart) -> Tokens:
        """Tokenise after an anchor, whose tokens are dropped, with those that a tokenizer adds before a text."""
        size = len(ANCHOR)
        shifted = tuple((start + size, end + size) for start, end in part.trainable)
        found = self._tokenize([replace(part, text=ANCHOR + part.text, trainable=shifted, continued=False)])[0]
        anchor = self._anchor or []
        if list(found.ids[: len(anchor)]) != anchor:  # the anchor and the text share a token
            return self._tokenize([replace(part, continued=False)])[0]
        trainable = [(start - len(anchor), end - len(anchor)) for start, end in found.trainable]
        return Tokens(found.ids[len(anchor) :], trainable, [at - size for at in found.straddled])

    def _ids_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _exact_backend(self, *, plain: bool) -> Iterator[Backend]:
        """The Rust tokenizer without truncation, padding and post-processor, which trims white space off offsets."""
        backend = self._backend
        assert backend is not None
        with self._lock:
            processor, special = backend.post_processor, backend.encode_special_tokens
            try:
                backend.no_truncation()
                backend.no_padding()
                # upstream: tokenizers 0.23.3 no issue: runs without special tokens too, trims blanks off offsets
                backend.post_processor = None
                backend.encode_special_tokens = plain
                yield backend
            finally:
                backend.post_processor, backend.encode_special_tokens = processor, special

    def _tokenize_by_prefixes(self, part: TextPart) -> Tokens:
        """Tokenise without offsets: a border is where the ids of the text before it are a prefix of the whole."""
        if part.ids is not None:
            return Tokens(part.ids, list(part.trainable))
        options = {"split_special_tokens": True} if part.plain else {}

        def ids_of(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

        return locate_by_prefixes(part, ids_of)

    def _resolve(self, context: tuple[int | str, ...]) -> tuple[int, ...]:
        ids: list[int] = []
        for item in context:
            token = item if isinstance(item, int) else getattr(self.tokenizer, item, None)
            if not isinstance(token, int):
                raise TemplateError(f"the template needs the tokenizer's {item}, which this tokenizer does not have")
            ids.append(token)
        return tuple(ids)


def _split_at(sample: TextParts) -> TextParts:
    """Tokenise the text before the last turn separately from that turn, like a prompt."""
    assert sample.last_answer is not None
    index, at = sample.last_answer
    part = sample.parts[index]
    num_before = sum(end <= at for _, end in part.trainable)
    spans, weights = part.trainable, part.weights
    before = replace(part, text=part.text[:at], trainable=spans[:num_before], weights=weights[:num_before])
    after = tuple((start - at, end - at) for start, end in spans[num_before:] if start >= at)
    answer = replace(part, text=part.text[at:], trainable=after, weights=weights[num_before:], continued=True)
    return TextParts(
        (*sample.parts[:index], before, answer, *sample.parts[index + 1 :]), (index + 1, 0), sample.num_plain
    )


class _OpenText:
    """Builder of a text from pieces."""

    __slots__ = ("length", "texts", "trainable", "weights")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.trainable: list[tuple[int, int]] = []
        self.weights: list[float] = []
        self.length = 0

    def add(self, piece: Piece) -> None:
        content = str(piece.content)
        start, self.length = self.length, self.length + len(content)
        self.texts.append(content)
        if piece.trainable and content:
            if self.trainable and self.trainable[-1][1] == start and self.weights[-1] == piece.weight:
                start = self.trainable.pop()[0]
                self.weights.pop()
            self.trainable.append((start, self.length))
            self.weights.append(piece.weight)

    def close_into(self, parts: list[TextPart]) -> None:
        if self.texts:
            weights = tuple(self.weights) if any(weight != 1.0 for weight in self.weights) else ()
            spans = tuple(self.trainable)
            parts.append(TextPart("".join(self.texts), trainable=spans, continued=_goes_on(parts), weights=weights))
            self.texts, self.trainable, self.weights, self.length = [], [], [], 0


def _goes_on(parts: Sequence[TextPart]) -> bool:
    """Return whether the next part continues the text: token ids end one, content encoded as plain text does not."""
    return bool(parts) and parts[-1].ids is None


def _span(piece: Piece, start: int, size: int) -> tuple[tuple[int, int], ...]:
    return ((start, start + size),) if piece.trainable and piece.content else ()


def _weights(piece: Piece, spans: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    return (piece.weight,) * len(spans) if piece.weight != 1.0 else ()


def _control_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    special = [token for token in tokenizer.added_tokens_decoder.values() if token.special and token.content]
    special.sort(key=lambda token: len(token.content), reverse=True)
    # a single-word token, ChatGLM's `sop`, does not match inside "philosophy"
    spellings = [rf"(?<!\w){re.escape(t.content)}(?!\w)" if t.single_word else re.escape(t.content) for t in special]
    return re.compile("|".join(spellings)) if spellings else None


# Truncate samples and prompts to `--max_length`, and count the loss


@dataclass(slots=True)
class EncodedRow:
    """Samples of one row. `problem`: why it has none.

    Of pre-training: `num_documents` is 1 for a document, which has `num_windows`; `num_bytes` of text are trainable.
    """

    samples: list[Encoded] = field(default_factory=list)
    num_truncated: int = 0
    num_cut_tokens: int = 0
    num_cut_trainable: int = 0
    num_deleted: int = 0
    num_untrainable: int = 0
    num_plain: int = 0
    num_cut_images: int = 0
    num_documents: int = 0
    num_windows: int = 0
    num_bytes: int = 0
    problem: str | None = None


def keep(
    encoded: Encoded, row: EncodedRow, limit: int | None, strategy: TruncationStrategy, *, media_tokens: Container[int]
) -> None:
    """Add a sample to its row, truncated to the limit, or count why it is skipped.

    Args:
        limit: Tokens; None: no limit. media_tokens: Ids of the positions of media.
    """
    num_tokens, num_trainable = len(encoded.input_ids), encoded.num_trainable
    if limit is not None and num_tokens > limit:
        if strategy == "delete":
            row.num_deleted += 1
            return
        kept = slice(-limit, None) if strategy == "left" else slice(limit)
        if _cuts_media(encoded, kept, media_tokens):
            row.num_cut_images += 1
            return
        weights = None if encoded.weights is None else encoded.weights[kept]
        encoded = replace(encoded, input_ids=encoded.input_ids[kept], labels=encoded.labels[kept], weights=weights)
        encoded.labels[0] = IGNORE_INDEX
        row.num_truncated += 1
        row.num_cut_tokens += num_tokens - len(encoded.input_ids)
        row.num_cut_trainable += num_trainable - encoded.num_trainable
    if encoded.num_trainable == 0:
        row.num_untrainable += 1
    else:
        row.samples.append(encoded)


def cut_prompt(prompt: Encoded, limit: int | None, *, media_tokens: Container[int]) -> Encoded:
    """Return the end of a prompt that fits the limit.

    Raises:
        TemplateError: Truncation would cut an image.
    """
    if not limit or len(prompt.input_ids) <= limit:
        return prompt
    if _cuts_media(prompt, slice(-limit, None), media_tokens):
        size = f"{len(prompt.input_ids):,} tokens, images included"
        raise TemplateError(f"A prompt has {size}; --max_length is {limit:,}. Increase it, or set it to -1.")
    return replace(prompt, input_ids=prompt.input_ids[-limit:])


def _cuts_media(encoded: Encoded, kept: slice, media_tokens: Container[int]) -> bool:
    def count(ids: list[int]) -> int:
        return sum(token in media_tokens for token in ids)

    return bool(encoded.media) and count(encoded.input_ids[kept]) != count(encoded.input_ids)
