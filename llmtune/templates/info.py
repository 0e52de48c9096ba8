"""Entries of the template registry. Data only: rendering is `template.py`, tokens are `encode.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from llmtune.errors import TemplateError, UsageError
from llmtune.registry import Entry, Registry
from llmtune.templates.pieces import Context
from llmtune.templates.tools.info import TOOL_FORMAT_MAPPING, ToolFormat
from llmtune.types import Json

DEFAULT_SYSTEM = "you are a helpful assistant!"
"""The default of the reference's templates that have a system slot."""

Place: TypeAlias = Literal["earlier", "current", "last"]
"""Place of a response: before the last question, after it (a tool call, for instance), or at the end."""

FormatAnswer: TypeAlias = Callable[[str, Place], str]
"""(content, place) -> the text of the response in the conversation."""

WriteThought: TypeAlias = Callable[[str, str, Place], str]
"""(thought, content, place) -> the same for a response whose thought is given separately."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateInfo(Entry):
    """Format of conversations for a model.

    The text is prefix, then for each turn: prompt, response, and chat_sep before the next prompt or suffix at the end.
    Placeholders are `{{SYSTEM}}`, `{{QUERY}}` and `{{ROUND}}` (in prompt; 1, 2, ...; `{{ROUND0}}` counts from 0).
    `{{SYSTEM}}` is in prefix, or in prompt, where it is written at the last question only. Its context is omitted
    where there is no system prompt.

    Attributes:
        prefix: The start of the text.
        prompt: One question, up to where the generation starts.
        chat_sep: Text between a response and the next prompt. None: one turn only.
        suffix: Text that the model writes to end its response; trainable.
        default_system: The system prompt where neither the row nor `--system` gives one.
        stop_words: Further texts that end a generation; suffix always does.
        strip: Whether contents are stripped of white space, as in the upstream template.
        strip_system: Whether the system prompt is, too.
        answer_prefix: Text that the template writes before the last response, after its prompt; not trainable.
        answer_format: Text that the model writes for a response, `{{ANSWER}}`, perhaps in blanks; all of it trainable.
        format_answer: Rewrites a response by its place; None writes it as it is.
        write_thought: Writes a response whose thought is given separately (`reasoning_content`), between <think> and
            </think>; None: the family has no thoughts, and a trainable response with one is refused.
        without_thinking: Key of the template for `enable_thinking: false`.
        keeps_prefixes: Whether the text of a conversation stays a prefix as turns are added.
        tool_format: Format of tools and tool calls, a key of TOOL_FORMAT_MAPPING; None refuses rows with tools.
        tool_prefix: The prefix of rows with tools, where it differs.
        image: Text of an image in a question, with the model's image token once; empty for text models.
        from_tokenizer: Render with the chat template that the tokenizer carries; other fields are then unused.
        source: Source of these facts.
    """

    prefix: tuple[Context, ...] = ()
    prompt: tuple[Context, ...]
    chat_sep: tuple[Context, ...] | None = None
    suffix: tuple[Context, ...] = (("eos_token_id",),)
    default_system: str | None = None
    stop_words: tuple[str, ...] = ()
    strip: bool = False
    strip_system: bool = True
    answer_prefix: str = ""
    answer_format: str = "{{ANSWER}}"
    format_answer: FormatAnswer | None = None
    write_thought: WriteThought | None = None
    without_thinking: str | None = None
    keeps_prefixes: bool = True
    tool_format: str | None = None
    tool_prefix: tuple[Context, ...] | None = None
    image: str = ""
    from_tokenizer: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("prefix", "prompt", "chat_sep", "suffix"):
            object.__setattr__(self, name, _as_contexts(name, getattr(self, name)))
        if self.tool_prefix is not None:
            object.__setattr__(self, "tool_prefix", _as_contexts("tool_prefix", self.tool_prefix))
        object.__setattr__(self, "stop_words", tuple(self.stop_words))
        if not any(isinstance(context, str) and "{{QUERY}}" in context for context in self.prompt):
            raise UsageError("The prompt of a template needs a text with {{QUERY}}.")
        if self.answer_format.count("{{ANSWER}}") != 1:
            raise UsageError("The answer_format of a template is a text with one {{ANSWER}}.")
        if self.default_system is not None and not self.has_system_slot:
            raise UsageError("A template with a default system prompt needs a prefix or a prompt with {{SYSTEM}}.")

    @property
    def has_system_slot(self) -> bool:
        contexts = (*self.prefix, *self.prompt)
        return any(isinstance(context, str) and "{{SYSTEM}}" in context for context in contexts)

    def with_tools(self, key: str) -> TemplateInfo:
        """Return the same with another tool format.

        Raises:
            UnknownKeyError: No such format. UsageError: The template has no place for it.
        """
        if self.from_tokenizer:
            raise UsageError(f"--tool_format {key}: the tokenizer's own chat template has its own tool format.")
        if TOOL_FORMAT_MAPPING[key].tools_in == "system" and not self.has_system_slot:
            raise UsageError(
                f"--tool_format {key} writes tools into the system prompt, and this template has no place for one. "
                "Choose one that writes them into a question: llmtune list tool_formats."
            )
        own = self.tool_prefix if key == self.tool_format else None
        return replace(self, tool_format=TOOL_FORMAT_MAPPING.canonical(key), tool_prefix=own)

    @property
    def tools(self) -> ToolFormat | None:
        return None if self.tool_format is None else TOOL_FORMAT_MAPPING[self.tool_format]


def _as_contexts(name: str, value: object) -> tuple[Context, ...] | None:
    if value is None and name == "chat_sep":
        return None
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} of a template is a list of texts and lists of token ids, not {value!r}.")
    contexts: list[Context] = []
    for item in value:
        if isinstance(item, str):
            contexts.append(item)
        elif isinstance(item, list | tuple) and all(isinstance(token, int | str) for token in item):
            contexts.append(tuple(item))
        else:
            raise UsageError(f"{name} of a template holds {item!r}; expected a text or a list of token ids.")
    return tuple(contexts)


TEMPLATE_MAPPING: Registry[TemplateInfo] = Registry(
    "template",
    TemplateInfo,
    builtin="llmtune.templates.families",
    entry_points="llmtune.templates",
    list_command="llmtune list templates",
)
register_template = TEMPLATE_MAPPING.register


def with_kwargs(info: TemplateInfo, kwargs: Mapping[str, Json]) -> TemplateInfo:
    """Apply variables of a tokenizer's own chat template (`chat_template_kwargs`) to a registered one.

    Raises:
        TemplateError: A variable that this template does not support.
    """
    unknown = sorted(set(kwargs) - {"enable_thinking"})
    if unknown:
        raise TemplateError(
            f"{', '.join(unknown)} is a variable of a tokenizer's own chat template, supported by --template_type auto"
        )
    thinks = kwargs.get("enable_thinking")
    if thinks is None or (not thinks and info.write_thought is None):
        return info
    if info.without_thinking is None:
        has = "writes no thoughts" if thinks else "always thinks"
        if thinks and info.write_thought is not None:
            return info
        raise TemplateError(f"enable_thinking is {str(thinks).lower()}, and this template {has}")
    quiet = TEMPLATE_MAPPING[info.without_thinking]
    is_quiet = info.answer_prefix == quiet.answer_prefix
    if thinks and is_quiet:
        raise TemplateError(f"enable_thinking is true, and the template {info.without_thinking} writes no thoughts")
    if thinks or is_quiet:
        return info
    return replace(quiet, tool_format=info.tool_format, tool_prefix=info.tool_prefix)
