"""Compare a template with the tokenizer's own chat template, so that servers feed the prompts that were trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from llmtune.data.image_marks import with_all_marks
from llmtune.errors import DataError, TemplateError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.upstream import checked_kwargs, thought_keys, upstream_messages
from llmtune.types import Conversation, Message

__all__ = [
    "Difference",
    "UpstreamRefusal",
    "first_difference",
    "prompt_difference",
    "sample_difference",
    "upstream_ids",
]


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
    if template.images is not None:
        prompt = with_all_marks(prompt)
        options["image"] = template.info.image
        ours = _images_once(ours, template.images.token_id)
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


def _images_once(ids: list[int], image: int) -> list[int]:
    return [token for place, token in enumerate(ids) if token != image or ids[place - 1 : place] != [image]]


def _question(conversation: Conversation) -> tuple[Message, ...]:
    messages = conversation.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages
