"""ChatTemplate: a template bound to a tokenizer, returned by `get_template`, shared by training, `check`, inference."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from llmtune.data.formats import to_conversation
from llmtune.data.image_marks import with_all_marks
from llmtune.errors import RowError, TemplateError, UsageError
from llmtune.templates.encode import EncodedRow, TextEncoder, TextParts, cut_prompt, keep
from llmtune.templates.info import TemplateInfo, with_kwargs
from llmtune.templates.kept import dropped_part
from llmtune.templates.media import MediaError, MediaReader, Sizes, fill_media
from llmtune.templates.pieces import Piece
from llmtune.templates.template import (
    mark_trainable,
    render,
    single_answer,
    split_chat_sep,
    system_prompt,
    trainable_answers,
)
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.types import (
    IGNORE_INDEX,
    Conversation,
    Encoded,
    Json,
    LossOn,
    Media,
    Message,
    TruncationStrategy,
    media_columns,
)
from llmtune.utils.logging import log_once

Row = Mapping[str, Any] | Conversation


class ChatTemplate:
    """Renders and encodes conversations for one model. Made by `get_template`, which explains the arguments."""

    def __init__(
        self,
        info: TemplateInfo,
        tokenizer: Any,
        *,
        name: str = "",
        system: str | None = None,
        max_length: int | None = None,
        truncation_strategy: TruncationStrategy = "left",
        loss_on: LossOn = "auto",
        special_tokens_in_text: Literal["text", "special"] = "text",
        template_kwargs: Mapping[str, Json] | None = None,
        media: MediaReader | None = None,
    ) -> None:
        if system is not None and not info.has_system_slot:
            raise UsageError(
                f"The template {name!r} has no slot for a system prompt, so --system cannot be applied. "
                "Remove --system, or choose another --template_type."
            )
        self.info = info
        self.name = name
        self.tokenizer = tokenizer
        self.system = system
        self.template_kwargs = dict(template_kwargs or {})
        self._check_kwargs()
        self.max_length = None if max_length is None or max_length < 0 else max_length
        self.truncation_strategy = truncation_strategy
        self.loss_on = loss_on
        self.control_as_text = special_tokens_in_text == "text"
        self.media = media if info.image else None
        self.token_texts: dict[
            int, str
        ] = {}  # of single tokens, and those of one character: for constrained generations
        self.single_characters: list[int] | None = None
        self._encoder = TextEncoder(tokenizer, control_as_text=self.control_as_text)
        stop, _ = split_chat_sep(info)
        # Where a turn's end is not written inside a conversation, only the last one is trainable.
        self._one_answer_a_sample = not info.keeps_prefixes or (info.chat_sep is not None and stop != info.suffix)
        self._moves_tools = info.tools is not None and not info.tools.keeps_prefixes

    def copy(self, tokenizer: Any = None) -> ChatTemplate:
        """Return the same with a tokenizer of its own, for another thread."""
        return type(self)(
            self.info,
            copy.deepcopy(self.tokenizer) if tokenizer is None else tokenizer,
            name=self.name,
            system=self.system,
            max_length=self.max_length,
            truncation_strategy=self.truncation_strategy,
            loss_on=self.loss_on,
            special_tokens_in_text="text" if self.control_as_text else "special",
            template_kwargs=self.template_kwargs,
            media=self.media,
        )

    def _check_kwargs(self) -> None:
        try:
            with_kwargs(self.info, self.template_kwargs)
        except TemplateError as err:
            raise UsageError(f"--chat_template_kwargs: {err}.") from None

    @property
    def purpose(self) -> str:
        """How it encodes texts, beside its fields; "" for the template's own way."""
        return ""

    # One row, for notebooks

    def encode(self, row: Row, *, generation: bool = False) -> dict[str, Any]:
        """Return token ids and labels of a row, or with `generation` the prompt alone.

        Where a row's assistant turns need a sample each (see `encode_all`), this is the last sample.

        Returns:
            `{"input_ids": [...], "labels": [...]}`, equal lengths. `labels` is IGNORE_INDEX except on trainable tokens.
            With `loss_weights` where messages have weights; with `images`, the paths in order, where the sample has
            any and the model is a vision model.

        Raises:
            RowError: The row has no known format. TemplateError: The template cannot express it, or nothing of it
            is left within `max_length`.
        """
        if self.info.image and self.media is None and as_conversation(row, need_answer=False).media:
            log_once(
                f"The template {self.name!r} has no reader of images, so the images of rows are ignored. Pass "
                "get_template(..., media=get_media_reader(model_type, tokenizer))."
            )
        if generation:
            prompt = self.prompts([row])[0]
            prompt.labels = [IGNORE_INDEX] * len(prompt.input_ids)
            return _as_dict(prompt)
        return self.encode_all(row)[-1]

    def encode_all(self, row: Row) -> list[dict[str, Any]]:
        """Return all samples of a row: one, or one per trainable turn where no single sequence can hold them."""
        encoded = self.encode_rows([as_conversation(row)])[0]
        if not encoded.samples:
            raise TemplateError(encoded.problem or f"the row has no trainable tokens left ({self._limit_text()})")
        return [_as_dict(sample) for sample in encoded.samples]

    def render(self, row: Row, *, generation: bool = False) -> str:
        """Return the text of a row as the model receives it; token ids are written as the tokenizer decodes them."""
        pieces = self.pieces(as_conversation(row, need_answer=not generation), generation=generation)
        return "".join(self._text_of(piece) for piece in pieces)

    # Many rows

    def expect(self, num_rows: int) -> None:
        """Prepare to encode this many rows."""
        self._encoder.expect(num_rows)

    def encode_rows(self, conversations: Sequence[Conversation]) -> list[EncodedRow]:
        """Encode rows in one batch. A row that the template cannot express has a `problem` and no samples."""
        rows = [EncodedRow() for _ in conversations]
        sizes = self._sizes(conversations)
        jobs: list[tuple[int, Conversation]] = []
        for index, conversation in enumerate(conversations):
            try:
                marked = mark_trainable(self._shown(conversation), self.loss_on)
            except RowError as err:
                rows[index].problem = str(err)
                continue
            jobs += [(index, part) for part in self._samples_of(marked)]
        jobs = self._encode_jobs(jobs, rows, sizes, may_split=True)
        self._encode_jobs(jobs, rows, sizes, may_split=False)
        for row in rows:
            if row.problem is not None:  # one turn that cannot be written skips the whole row
                row.samples = []
        return rows

    def encode_prompts(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the prompt ids of each row; longer prompts lose their start."""
        return [prompt.input_ids for prompt in self.prompts(rows)]

    def prompts(self, rows: Sequence[Row]) -> list[Encoded]:
        """Return the prompts with their images; there are no labels.

        Raises:
            RowError: More marks than images. MediaError: An image that is missing or broken.
            TemplateError: The template cannot express a row, or truncating it would cut an image.
        """
        conversations = [self._shown(as_conversation(row, need_answer=False)) for row in rows]
        sizes = self._sizes(conversations)
        samples = [self._sample(conversation, sizes, generation=True) for conversation in conversations]
        found: list[Encoded] = []
        for conversation, encoded in zip(conversations, self._encoder.encode(samples), strict=True):
            assert encoded is not None, "a prompt has no answer whose border could lie inside a token"
            made = replace(encoded, media=self._media_of(conversation))
            found.append(cut_prompt(made, self.max_length, media_tokens=self.media_token_ids))
        return found

    def pieces(self, conversation: Conversation, *, generation: bool = False) -> list[Piece]:
        """Return the pieces of a row whose trainable turns are already marked."""
        everything = self.loss_on == "everything"
        return render(
            with_kwargs(self.info, {**self.template_kwargs, **conversation.template_kwargs}),
            self._shown(conversation),
            system=self.system,
            train_everything=everything,
            generation=generation,
            images=self.media is not None,
        )

    @property
    def answer_frame(self) -> tuple[str, str]:
        """Text around a response that the model writes but that is not part of it: the blank of ` {{ANSWER}}`."""
        before, _, after = self.info.answer_format.partition("{{ANSWER}}")
        return before, after

    @property
    def thought_marks(self) -> ThoughtMarks | None:
        """Marks around the model's thoughts; None where its family has none."""
        return None if self.info.write_thought is None else THINK

    @cached_property
    def thought_tokens(self) -> dict[int, str]:
        """Special tokens among the marks of thoughts, kept in a decoded response: id -> text."""
        marks = self.thought_marks
        found = {} if marks is None else {text: self._single_token(text) for text in (marks.open, marks.close)}
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        return {ids[0]: text for text, ids in found.items() if ids and ids[0] in special}

    def system_of(self, row: Row) -> str | None:
        """Return the system prompt of a row: its own, that of the settings, or the template's default.

        None: there is none, or the tokenizer's chat template adds its own.
        """
        conversation = as_conversation(row, need_answer=False)
        if self.info.from_tokenizer:
            return conversation.system if conversation.system is not None else self.system
        return system_prompt(self.info, conversation, self.system)

    def opens_thought(self, row: Row) -> bool:
        """Return whether the prompt of a row ends in the opening of a thought, which the model then continues."""
        marks = self.thought_marks
        if marks is None:
            return False
        pieces = self.pieces(as_conversation(row, need_answer=False), generation=True)
        return marks.is_open("".join(piece.content for piece in pieces[-2:] if isinstance(piece.content, str)))

    @property
    def stop_token_ids(self) -> list[int]:
        """Single tokens that end a generation: the tokenizer's EOS token and the first token of suffix."""
        ids = [self.tokenizer.eos_token_id]
        if self.info.suffix:
            first = self.info.suffix[0]
            if isinstance(first, tuple):
                ids += self._encoder.sample([Piece(first[:1])]).parts[0].ids or ()
            else:
                ids += self._single_token(first)
        for word in self.info.stop_words:
            ids += self._single_token(word)
        return list(dict.fromkeys(token for token in ids if token is not None))

    @property
    def stop_strings(self) -> list[str]:
        """Stop words that are several tokens."""
        words = [*self.info.stop_words, *(text for text in self.info.suffix if isinstance(text, str))]
        return [word for word in words if word.strip() and not self._single_token(word)]

    def split_stop_words(self, words: Sequence[str]) -> tuple[list[int], list[str]]:
        """Split stop words into single tokens and texts of several."""
        ids = [token for word in words for token in self._single_token(word)]
        return ids, [word for word in words if word.strip() and not self._single_token(word)]

    # Turns that a response consists of

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the ids of pieces."""
        (encoded,) = self._encoder.encode([self._encoder.sample([replace(one, trainable=False) for one in pieces])])
        assert encoded is not None, "nothing is trainable that could begin inside a token"
        return encoded.input_ids

    def pieces_behind_calls(self, called: Conversation, results: Sequence[Message]) -> tuple[list[Piece], list[Piece]]:
        """Return the end of a turn with calls, as the model writes it, and what follows up to the next turn's start.

        Args:
            called: Ends with the turn.
        """
        place = len(called.turns) - 1
        asked = replace(called, messages=(*called.messages, *results))
        pieces = self.pieces(asked, generation=True)
        last = max(at for at, piece in enumerate(pieces) if piece.turn == place)
        first = 1 + max(at for at in range(last + 1) if pieces[at].from_data)
        return pieces[first : last + 1], pieces[last + 1 :]

    # Inside

    def _samples_of(self, conversation: Conversation) -> list[Conversation]:
        num_trainable = len(trainable_answers(conversation))
        if self.loss_on == "everything" or num_trainable < 2:
            return [conversation]
        num_questions = sum(turn.role == "user" for turn in conversation.turns)
        moves = self._moves_tools and bool(conversation.tools) and num_questions > 1
        return _one_by_one(conversation) if self._one_answer_a_sample or moves else [conversation]

    def _encode_jobs(
        self, jobs: list[tuple[int, Conversation]], rows: list[EncodedRow], sizes: Sizes, *, may_split: bool
    ) -> list[tuple[int, Conversation]]:
        """Encode samples into their rows; return those to be encoded answer by answer."""
        ready = []
        for index, conversation in jobs:
            try:
                ready.append((index, conversation, self._sample(conversation, sizes)))
            except (TemplateError, MediaError) as err:
                rows[index].problem = str(err)
        again: list[tuple[int, Conversation]] = []
        encoded_samples = self._encoder.encode([sample for _, _, sample in ready])
        for (index, conversation, sample), encoded in zip(ready, encoded_samples, strict=True):
            if encoded is None:
                assert may_split, "a sample with one answer never needs splitting"
                again += [(index, part) for part in _one_by_one(conversation)]
            else:
                rows[index].num_plain += sample.num_plain
                made = replace(encoded, media=self._media_of(conversation))
                keep(made, rows[index], self.max_length, self.truncation_strategy, media_tokens=self.media_token_ids)
        return again

    # Media, for vision models

    def _shown(self, conversation: Conversation) -> Conversation:
        return conversation if self.media is None else with_all_marks(conversation)

    def _media_of(self, conversation: Conversation) -> tuple[Media, ...]:
        return () if self.media is None else conversation.media

    def _sizes(self, conversations: Sequence[Conversation]) -> Sizes:
        if self.media is None:
            return {}
        return self.media.measure(one for conversation in conversations for one in conversation.media)

    def _sample(self, conversation: Conversation, sizes: Sizes, *, generation: bool = False) -> TextParts:
        """Return the parts to tokenise, with the token of an image once per position of it."""
        pieces = self.pieces(conversation, generation=generation)
        if not generation:
            dropped = dropped_part(pieces, conversation, self.thought_marks, everything=self.loss_on == "everything")
            if dropped is not None:
                raise TemplateError(dropped)
        if self.media is not None:
            texts = {kind: token.text for kind, token in self.media.tokens.items()}
            spelled = {text for text in texts.values() if self._encoder.control_spans(text, [text])}
            pieces = fill_media(pieces, conversation.media, sizes, texts, may_spell=spelled)
        return self._encoder.sample(pieces)

    @property
    def media_token_ids(self) -> frozenset[int]:
        """Ids of the positions of images; none for text models."""
        return frozenset() if self.media is None else frozenset(token.id for token in self.media.tokens.values())

    def _limit_text(self) -> str:
        if self.max_length is None:
            return "no assistant turn is marked as trainable"
        return f"--max_length {self.max_length}, --truncation_strategy {self.truncation_strategy}"

    def _text_of(self, piece: Piece) -> str:
        if isinstance(piece.content, str):
            return piece.content
        ids = self._encoder.sample([piece]).parts[0].ids
        return str(self.tokenizer.decode(list(ids or ())))

    def _single_token(self, text: str) -> list[int]:
        ids = self.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        return list(ids) if len(ids) == 1 else []


def _as_dict(sample: Encoded) -> dict[str, Any]:
    found: dict[str, Any] = {"input_ids": sample.input_ids, "labels": sample.labels}
    if sample.weights is not None:
        found["loss_weights"] = sample.weights
    return found | media_columns(sample.media)


def _one_by_one(conversation: Conversation) -> list[Conversation]:
    return [single_answer(conversation, answer) for answer in trainable_answers(conversation)]


def as_conversation(row: Row, *, need_answer: bool = True) -> Conversation:
    return row if isinstance(row, Conversation) else to_conversation(row, need_answer=need_answer)
