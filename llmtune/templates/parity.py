"""Check a template against the chat template that a tokenizer carries: what was trained is what a server will feed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.types import Conversation, Message

__all__ = [
    "Difference",
    "UpstreamRefusal",
    "first_difference",
    "prompt_difference",
    "sample_difference",
    "upstream_ids",
    "upstream_messages",
]


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


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sequences of ids that should be one. `what`: the part of the conversation that was compared."""

    what: str
    ours: list[int]
    theirs: list[int]

    @property
    def at(self) -> int:
        """The first token that differs."""
        shorter = min(len(self.ours), len(self.theirs))
        return next((index for index in range(shorter) if self.ours[index] != self.theirs[index]), shorter)


def prompt_difference(template: ChatTemplate, conversation: Conversation) -> Difference | None:
    """Whether inference would feed other ids than the tokenizer's own chat template, to answer this conversation.

    Raises:
        TemplateError: Our template refuses it. UpstreamRefusal: The tokenizer's does.
    """
    prompt = Conversation(_question(conversation), conversation.tools, conversation.images)
    ours = template.encode_prompts([prompt])[0]
    options = {"enable_thinking": False} if template.info.answer_prefix else {}
    try:
        theirs = upstream_ids(template.tokenizer, prompt, system=template.system, add_generation_prompt=True, **options)
    except Exception as err:  # whatever a chat template raises for a conversation that it refuses
        raise UpstreamRefusal(str(err)) from err
    if template.max_length is not None:
        theirs = theirs[-template.max_length :]
    return None if ours == theirs else Difference("the prompt", ours, theirs)


def sample_difference(template: ChatTemplate, conversation: Conversation) -> Difference | None:
    """Whether a sample of training begins otherwise than the prompt that its last answer would be given."""
    sample = template.encode_all(conversation)[-1]["input_ids"]
    prompt = template.encode_prompts([Conversation(_question(conversation), conversation.tools)])[0]
    begins = sample[: len(prompt)] == prompt
    return None if begins else Difference("what is trained, against the prompt", sample, prompt)


class UpstreamRefusal(Exception):
    """The tokenizer's own chat template does not take a conversation."""


def first_difference(template: ChatTemplate, conversations: Iterable[Conversation]) -> str | None:
    """Where a template first departs from the tokenizer's own chat template, as a line to print; None where nowhere.

    Compared is the prompt that inference feeds, on the rows given; a tokenizer without a chat template agrees.
    """
    tokenizer = template.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return None
    for conversation in conversations:
        if not any(message.role == "user" for message in _question(conversation)):
            continue
        try:
            found = prompt_difference(template, conversation)
        except TemplateError:  # a row that the template cannot express has been told of already
            continue
        except UpstreamRefusal as err:
            return f"the tokenizer's own refuses a row ({err})"
        if found is not None:
            around = slice(max(found.at - 3, 0), found.at + 8)
            shown = [repr(tokenizer.decode(ids[around])) for ids in (found.ours, found.theirs)]
            return f"{template.name!r} gives {shown[0]} where the tokenizer's own gives {shown[1]} (token {found.at})"
    return None


def _question(conversation: Conversation) -> tuple[Message, ...]:
    messages = conversation.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages
