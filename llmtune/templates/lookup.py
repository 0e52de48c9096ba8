"""get_template(): a key of TEMPLATE_MAPPING, bound to a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llmtune.templates.chat import ChatTemplate
from llmtune.templates.documents import DocumentTemplate, OwnDocumentTemplate
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.templates.media import MediaReader
from llmtune.templates.own import OwnTemplate
from llmtune.types import Json, LossOn, TruncationStrategy


def get_template(
    template_type: str,
    tokenizer: Any,
    *,
    system: str | None = None,
    max_length: int | None = None,
    truncation_strategy: TruncationStrategy = "left",
    loss_on: LossOn = "auto",
    special_tokens_in_text: Literal["text", "special"] = "text",
    tool_format: str | None = None,
    template_kwargs: Mapping[str, Json] | None = None,
    media: MediaReader | None = None,
    documents: Literal["windows", "joined"] | None = None,
) -> ChatTemplate:
    """Bind a registered template to a tokenizer.

    Args:
        template_type: Key in TEMPLATE_MAPPING.
        tokenizer: A transformers tokenizer.
        system: System prompt for rows without one of their own; None means the template's default.
        max_length: Tokens kept of a sample, special tokens included; None or -1 keeps all.
        truncation_strategy: The part removed from a longer sample: its start, its end, or all of it.
        loss_on: Which turns are trainable; `auto`: by the row's format and loss marks.
        special_tokens_in_text: Whether a control token's spelling in the data is encoded as text or as the token.
        tool_format: Key in TOOL_FORMAT_MAPPING, instead of the template's own.
        template_kwargs: Variables of the tokenizer's own chat template, such as `{"enable_thinking": False}`; a row's
            own override them. A registered template supports only `enable_thinking`.
        media: Reads the images of rows: `get_media_reader` of a vision model. None: images are ignored.
        documents: Encode texts as documents of pre-training, which need no template: continued in windows of
            `max_length` tokens, or whole, to be joined. None: by the template, as conversations.

    Raises:
        UnknownKeyError: No such template or format. UsageError: It has no place for the system prompt, or the tools.
    """
    info = TEMPLATE_MAPPING[template_type]
    info = info if tool_format is None else info.with_tools(tool_format)
    options: dict[str, Any] = {
        "name": TEMPLATE_MAPPING.canonical(template_type),
        "system": system,
        "max_length": max_length,
        "truncation_strategy": truncation_strategy,
        "loss_on": loss_on,
        "special_tokens_in_text": special_tokens_in_text,
        "template_kwargs": template_kwargs,
        "media": media,
    }
    if documents is None:
        return (OwnTemplate if info.from_tokenizer else ChatTemplate)(info, tokenizer, **options)
    kind = OwnDocumentTemplate if info.from_tokenizer else DocumentTemplate
    return kind(info, tokenizer, joined=documents == "joined", **options)
