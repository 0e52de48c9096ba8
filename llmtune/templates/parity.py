"""Check a template against the chat template that a tokenizer carries: what was trained is what a server will feed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.types import Conversation

__all__ = ["first_difference", "upstream_ids", "upstream_messages"]


def upstream_messages(conversation: Conversation, *, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation as `apply_chat_template` takes it."""
    messages: list[dict[str, Any]] = []
    if conversation.system is None and system is not None:
        messages.append({"role": "system", "content": system})
    for message in conversation.messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            item["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        messages.append(item)
    return messages


def upstream_ids(tokenizer: Any, conversation: Conversation, *, system: str | None = None, **options: Any) -> list[int]:
    """What the tokenizer's own chat template makes of a conversation."""
    text = tokenizer.apply_chat_template(
        upstream_messages(conversation, system=system),
        tools=list(conversation.tools) or None,
        tokenize=False,
        **options,
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def first_difference(template: ChatTemplate, conversations: Iterable[Conversation]) -> str | None:
    """Where a template first departs from the tokenizer's own chat template, as a line to print; None where nowhere.

    Compared is the prompt that inference feeds, on the rows given; a tokenizer without a chat template agrees.
    """
    tokenizer = template.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return None
    for conversation in conversations:
        question = (
            conversation.messages[:-1] if conversation.messages[-1].role == "assistant" else conversation.messages
        )
        if not any(message.role == "user" for message in question):
            continue
        prompt = Conversation(question, conversation.tools, conversation.images)
        try:
            ours = template.encode_prompts([prompt])[0]
        except TemplateError:  # a row that the template cannot express has been told of already
            continue
        options = {"enable_thinking": False} if template.info.answer_prefix else {}
        theirs = upstream_ids(tokenizer, prompt, system=template.system, add_generation_prompt=True, **options)
        if template.max_length is not None:
            theirs = theirs[-template.max_length :]
        if ours != theirs:
            at = next(
                (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            shown = [repr(tokenizer.decode(ids[max(at - 3, 0) : at + 8])) for ids in (ours, theirs)]
            return f"{template.name!r} gives {shown[0]} where the tokenizer's own gives {shown[1]} (token {at})"
    return None
