"""Compare a template with the tokenizer's own chat template, so that servers feed the prompts that were trained."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from llmtune.data.image_marks import MARK, split_marks, with_all_marks
from llmtune.errors import DataError, TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools.info import call_id
from llmtune.types import Conversation, Json, Message


def upstream_ids(
    tokenizer: Any, conversation: Conversation, *, system: str | None = None, image: str = "", **options: Any
) -> list[int]:
    """Return the text that the tokenizer's own chat template gives for a conversation; an image is one token."""
    keys = thought_keys(str(tokenizer.chat_template))
    text = tokenizer.apply_chat_template(
        upstream_messages(conversation, system=system, image=image, thoughts_as=keys),
        tools=list(conversation.tools) or None,
        tokenize=False,
        **checked_kwargs(conversation.template_kwargs),
        **options,
    )
    # The chat templates of models with a processor leave the BOS token to it.
    adds = bool(image) and not text.startswith(tokenizer.bos_token or "")
    return list(tokenizer(text, add_special_tokens=adds)["input_ids"])


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sequences of ids that should be equal. `what`: the part of the conversation that was compared."""

    what: str
    ours: list[int]
    theirs: list[int]

    @property
    def at(self) -> int:
        """Index of the first differing token."""
        shorter = min(len(self.ours), len(self.theirs))
        return next((index for index in range(shorter) if self.ours[index] != self.theirs[index]), shorter)


def prompt_difference(template: ChatTemplate, conversation: Conversation) -> Difference | None:
    """Compare the prompt ids of inference with those of the tokenizer's own chat template.

    Raises:
        TemplateError: Our template refuses the conversation. UpstreamRefusal: The tokenizer's does.
    """
    prompt = replace(conversation, messages=_question(conversation))
    ours = template.encode_prompts([prompt])[0]
    options: dict[str, Any] = {"enable_thinking": False} if template.info.answer_prefix else {}
    if template.media is not None:
        prompt = with_all_marks(prompt)
        options["image"] = template.info.image
        ours = _media_once(ours, template.media_token_ids)
    try:
        theirs = upstream_ids(template.tokenizer, prompt, system=template.system, add_generation_prompt=True, **options)
    except Exception as err:  # a chat template may raise anything for a conversation that it refuses
        raise UpstreamRefusal(str(err)) from err
    if template.max_length is not None:
        theirs = theirs[-template.max_length :]
    return None if ours == theirs else Difference("the prompt", ours, theirs)


def sample_difference(template: ChatTemplate, conversation: Conversation) -> Difference | None:
    """Compare the start of a training sample with the inference prompt of its last turn."""
    sample = template.encode_all(conversation)[-1]["input_ids"]
    question = replace(conversation, messages=_question(conversation))
    prompt = template.encode_prompts([question])[0]
    begins = sample[: len(prompt)] == prompt
    return None if begins else Difference("the trained text, against the prompt", sample, prompt)


class UpstreamRefusal(Exception):
    """The tokenizer's own chat template refuses a conversation."""


def first_difference(template: ChatTemplate, conversations: Iterable[Conversation]) -> str | None:
    """Return the first difference from the tokenizer's own chat template, as a line to print; None if there is none.

    Compares the prompts of inference on the given rows; a tokenizer without a chat template agrees.
    """
    tokenizer = template.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return None
    for conversation in conversations:
        if not any(message.role == "user" for message in _question(conversation)):
            continue
        try:
            found = prompt_difference(template, conversation)
        except (TemplateError, DataError):  # unwritable rows and unreadable images have been reported already
            continue
        except UpstreamRefusal as err:
            return f"the tokenizer's own refuses a row ({err})"
        if found is not None:
            around = slice(max(found.at - 3, 0), found.at + 8)
            shown = [repr(tokenizer.decode(ids[around])) for ids in (found.ours, found.theirs)]
            return f"{template.name!r} gives {shown[0]} where the tokenizer's own gives {shown[1]} (token {found.at})"
    return None


def _media_once(ids: list[int], media: frozenset[int]) -> list[int]:
    return [token for place, token in enumerate(ids) if token not in media or ids[place - 1 : place] != [token]]


def _question(conversation: Conversation) -> tuple[Message, ...]:
    messages = conversation.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages


# Convert a conversation into the messages of `apply_chat_template`


THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys that chat templates read the thought of a message from."""


@lru_cache
def thought_keys(source: str) -> tuple[str, ...]:
    """Return the THOUGHT_KEYS that a chat template's source reads; the first if it reads none."""
    read = [key for key in THOUGHT_KEYS if re.search(r"""(?:\.|['"])""" + key + r"\b", source)]
    return tuple(read or THOUGHT_KEYS[:1])


def checked_kwargs(kwargs: Mapping[str, Json]) -> dict[str, Json]:
    """Return variables for a chat template.

    Raises:
        TemplateError: A parameter of `apply_chat_template` itself, with which a row of data or a client of the server
            could replace the template.
    """
    taken = sorted(set(kwargs) & _own_arguments())
    if taken:
        raise TemplateError(
            f"chat_template_kwargs contains {', '.join(taken)}, which is not a variable of a chat template"
        )
    return dict(kwargs)


@lru_cache
def _own_arguments() -> frozenset[str]:
    from transformers import PreTrainedTokenizerBase

    names = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    return (names | {"messages"}) - {"documents", "kwargs"}


def upstream_messages(
    conversation: Conversation,
    *,
    system: str | None = None,
    image: str = "",
    thoughts_as: Sequence[str] = THOUGHT_KEYS[:1],
    own_ids: bool = True,
) -> list[dict[str, Any]]:
    """Return the messages of a conversation.

    Args:
        image: The template's text of an image; questions with images are then lists of parts.
        thoughts_as: Keys of a thought.
        own_ids: Keep the ids of calls in the data. Else calls are numbered with the nine digits that Mistral's
            templates require; a result keeps the call that it refers to.
    """
    messages: list[dict[str, Any]] = []
    ids = _Ids(own_ids)
    if conversation.system is None and system is not None:
        messages.append({"role": "system", "content": system})
    for message in conversation.messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if image and message.role == "user" and MARK.search(message.content):
            texts = split_marks(message.content, joins_line=image.endswith("\n"))
            item["content"] = [{"type": "image"} if text is None else {"type": "text", "text": text} for text in texts]
        if message.name is not None:
            item["name"] = message.name
        if message.reasoning is not None:
            item |= dict.fromkeys(thoughts_as, message.reasoning)
        if message.role == "tool":
            item["tool_call_id"] = ids.of_result(message)
        if message.tool_calls:
            item["tool_calls"] = [
                {
                    "type": "function",
                    "id": ids.of_call(call.id),
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
        messages.append(item)
    return messages


class _Ids:
    """Return the ids of calls, each with the id that its result refers to."""

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self._given: dict[str, str] = {}
        self._num_calls = self._num_results = 0

    def of_call(self, own: str | None) -> str:
        counted = call_id(self._num_calls)
        self._num_calls += 1
        if own is not None:
            self._given[own] = own if self.keep else counted
            return self._given[own]
        return counted

    def of_result(self, message: Message) -> str:
        counted = call_id(self._num_results)
        self._num_results += 1
        own = message.tool_call_id
        if own is None:
            return counted
        return self._given.get(own, own if self.keep else counted)
