"""Encode prompts: the ids behind which a response is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmtune.errors import RowError, TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.comparisons import without_oldest_turns
from llmtune.templates.media import MediaError
from llmtune.types import Conversation, Media


@dataclass(slots=True)
class EncodedPrompt:
    """The ids of a prompt, or the `problem` why there are none.

    Attributes:
        num_turns_cut: Turns that were removed from its start, to fit the limit.
        is_too_long: Left out: it does not fit even with its last question alone.
    """

    input_ids: list[int] = field(default_factory=list)
    media: tuple[Media, ...] = ()
    num_turns_cut: int = 0
    is_too_long: bool = False
    problem: str | None = None


def encode_prompts(
    rows: Sequence[Conversation], template: ChatTemplate, limit: int | None = None
) -> list[EncodedPrompt]:
    """Encode prompts.

    Args:
        limit: Most tokens of a prompt. Of longer ones the oldest turns are removed, as far as the template's
            `truncation_strategy` is not `delete`; a question is not cut.
    """
    whole = template.copy(template.tokenizer)
    whole.max_length = None
    return [_encoded(row, whole, limit) for row in rows]


def _encoded(row: Conversation, template: ChatTemplate, limit: int | None) -> EncodedPrompt:
    num_cut = 0
    while True:
        try:
            (made,) = template.prompts([row])
        except (RowError, TemplateError, MediaError) as err:
            return EncodedPrompt(problem=str(err))
        if limit is None or len(made.input_ids) <= limit:
            return EncodedPrompt(made.input_ids, made.media, num_cut)
        shorter = None if template.truncation_strategy == "delete" else without_oldest_turns(row)
        if shorter is None:
            return EncodedPrompt(is_too_long=True, num_turns_cut=num_cut)
        num_cut += len(row.turns) - len(shorter.turns)
        row = shorter
