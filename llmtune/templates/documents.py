"""Documents: texts for pre-training, encoded without a template and continued from window to window.

A document is `BOS text EOS`, with the tokens that its tokenizer puts around a text by itself, and an EOS token at its
end. All of it is trainable but the first token, before which there is no context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from llmtune.errors import UsageError
from llmtune.templates.chat import ChatTemplate, Row, as_conversation
from llmtune.templates.encode import EncodedRow
from llmtune.templates.own import OwnTemplate
from llmtune.templates.pieces import Piece
from llmtune.types import IGNORE_INDEX, Conversation, Encoded

OVERLAP = 1
"""Tokens that a window repeats of the one before, as context of its first trainable token."""
PROBE = "a b"
BROKEN = "\ufffd"
"""The decoded text of a part of a character."""


def is_document(conversation: Conversation) -> bool:
    """Whether a row is a plain text, without a question."""
    if len(conversation.messages) != 1 or conversation.tools or conversation.media:
        return False
    (message,) = conversation.messages
    return message.role == "assistant" and message.loss and not message.tool_calls and message.reasoning is None


def window_bounds(length: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Yield start and end of each window over `length` tokens: of up to `size` tokens, overlapping by one.

    Args:
        size: At least 2; None: one window of any length.
    """
    end = length if size is None else min(size, length)
    yield 0, end
    while size is not None and end < length:
        start, end = end - OVERLAP, min(end - OVERLAP + size, length)
        yield start, end


class DocumentTemplate(ChatTemplate):
    """A chat template for conversations, beside which texts are encoded as documents.

    Args:
        joined: Documents will be joined: none is cut into windows, and its first token is trainable too, unless it is
            one of those that the tokenizer adds: the document before it is its context.
    """

    def __init__(self, *args: Any, joined: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.joined = joined
        if self.tokenizer.eos_token_id is None:
            raise UsageError("The tokenizer has no EOS token, which ends each document: give another tokenizer.")

    def copy(self, tokenizer: Any = None) -> DocumentTemplate:
        found = super().copy(tokenizer)
        assert isinstance(found, DocumentTemplate)
        found.joined = self.joined
        return found

    @property
    def purpose(self) -> str:
        return "joined documents" if self.joined else "documents"

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after the text of a document: the tokenizer's own, and EOS at the end."""
        bare = list(self.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        whole = list(self.tokenizer(PROBE)["input_ids"])
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        before, after = whole[:at], whole[at + len(bare) :]
        eos = self.tokenizer.eos_token_id
        return tuple(before), tuple(after if after[-1:] == [eos] else [*after, eos])

    def render(self, row: Row, *, generation: bool = False) -> str:
        conversation = as_conversation(row, need_answer=not generation)
        if generation or not is_document(conversation):
            return super().render(conversation, generation=generation)
        return "".join(self._text_of(piece) for piece in self._document_pieces(conversation))

    def encode_rows(self, conversations: Sequence[Conversation]) -> list[EncodedRow]:
        others = iter(super().encode_rows([row for row in conversations if not is_document(row)]))
        documents = iter(self._encode_documents([row for row in conversations if is_document(row)]))
        found = []
        for conversation in conversations:
            row = next(documents if is_document(conversation) else others)
            if not is_document(conversation):
                row.num_bytes = sum(self._num_bytes(sample) for sample in row.samples)
            found.append(row)
        return found

    def _encode_documents(self, conversations: Sequence[Conversation]) -> list[EncodedRow]:
        parts = [self._encoder.sample(self._document_pieces(conversation)) for conversation in conversations]
        found = []
        for conversation, sample, encoded in zip(conversations, parts, self._encoder.encode(parts), strict=True):
            assert encoded is not None, "a document is trainable as a whole, so no border lies inside a token"
            row = EncodedRow(num_plain=sample.num_plain, num_documents=1)
            self._cut_into_windows(encoded, conversation.messages[0].content, row)
            found.append(row)
        return found

    def _document_pieces(self, conversation: Conversation) -> list[Piece]:
        (message,) = conversation.messages
        before, after = self.frame
        pieces = [
            Piece(before),
            Piece(message.content, trainable=True, from_data=True, turn=0, weight=message.weight),
            Piece(after, trainable=True, turn=0, weight=message.weight),
        ]
        return [piece for piece in pieces if piece.content]

    def _cut_into_windows(self, encoded: Encoded, text: str, row: EncodedRow) -> None:
        row.num_bytes = len(text.encode("utf-8"))
        if not self.frame[0]:
            if self.joined:
                encoded.labels[0] = encoded.input_ids[0]
            else:
                row.num_bytes -= min(self.first_bytes(encoded.input_ids[0]), row.num_bytes)
        bounds = list(window_bounds(len(encoded.input_ids), None if self.joined else self.max_length))
        windows = [_window(encoded, start, end) for start, end in bounds]
        row.samples = [window for window in windows if window.num_trainable]
        row.num_untrainable = len(windows) - len(row.samples)
        row.num_windows = len(windows)

    def first_bytes(self, token: int) -> int:
        """Bytes of text in the first token of a document; none if its character continues in the second one."""
        text = str(self.tokenizer.decode([token], skip_special_tokens=True))
        return 0 if BROKEN in text else len(text.encode("utf-8"))

    def _num_bytes(self, sample: Encoded) -> int:
        trainable = [token for token in sample.labels if token != IGNORE_INDEX]
        return len(str(self.tokenizer.decode(trainable, skip_special_tokens=True)).encode("utf-8"))


class OwnDocumentTemplate(DocumentTemplate, OwnTemplate):
    """The same with the tokenizer's own chat template."""


def _window(encoded: Encoded, start: int, end: int) -> Encoded:
    if (start, end) == (0, len(encoded.input_ids)):
        return encoded
    weights = None if encoded.weights is None else encoded.weights[start:end]
    labels = encoded.labels[start:end]
    if start:
        labels[:OVERLAP] = [IGNORE_INDEX] * OVERLAP
    return replace(encoded, input_ids=encoded.input_ids[start:end], labels=labels, weights=weights)
