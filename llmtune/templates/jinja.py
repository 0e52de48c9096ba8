"""Convert a template into a tokenizer's Jinja chat template, so that other programs serve the trained format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmtune.errors import TemplateError
from llmtune.templates.encode import TextEncoder
from llmtune.templates.pieces import Piece

if TYPE_CHECKING:
    from llmtune.templates.info import TemplateInfo
    from llmtune.templates.pieces import Context


PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

TOO_MANY_TURNS = "this template supports one question and one response, and the conversation has more turns"
NO_SYSTEM = "this template has no slot for a system prompt"
NO_TOOLS = "this chat template has no format for tools and their calls"
NO_QUESTION = "the conversation ends with an assistant message: there is nothing to answer"
TWO_QUESTIONS = "two user messages follow each other without an assistant message between them"

# Values reach the text through variables alone: contents are never read as Jinja.
_QUESTION, _ROUND, _ROUND0, _SYSTEM = "content", "ns.round | string", "(ns.round - 1) | string", "system_text"
_IN_PROMPT = {"QUERY": _QUESTION, "ROUND": _ROUND, "ROUND1": _ROUND, "ROUND0": _ROUND0}

IS_SYSTEM = "system_text is not none"
IS_LAST_QUESTION = "turns[loop.index:] | selectattr('role', 'equalto', 'user') | list | length == 0"

LAST_ANSWER = "{{%- if loop.last and not loop.first -%}}{}{{%- endif -%}}"

# A content is a text, or a list of parts that are text or image.
_IMAGES = """\
{{%- macro written(content) -%}}
{{%- if content is string -%}}
{{{{- content -}}}}
{{%- else -%}}
{{%- for part in content -%}}
{{%- if part['type'] == 'text' -%}}{{{{- part['text'] -}}}}{{%- else -%}}{image}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{{%- endmacro -%}}"""

# The layout is for readers: every tag strips the white space around it.
_FRAME = """\
{images}
{tools}
{system}
{{%- set ns = namespace(round=0) -%}}
{prefix}
{{%- for message in turns -%}}
{content}
{{%- if message['role'] == 'user' -%}}
{{%- if not loop.first and turns[loop.index0 - 1]['role'] == 'user' -%}}{two_questions}{{%- endif -%}}
{{%- set ns.round = ns.round + 1 -%}}
{prompt}
{{%- elif message['role'] == 'assistant' -%}}
{{%- if message['tool_calls'] -%}}{no_tools}{{%- endif -%}}
{answer_prefix}
{answer}
{{%- if not loop.last -%}}
{chat_sep}
{{%- else -%}}
{suffix}
{{%- endif -%}}
{{%- else -%}}
{{{{- raise_exception("this chat template has no place for the role " + message['role']) -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{generation}"""


def to_jinja(info: TemplateInfo, tokenizer: Any, *, system: str | None = None) -> str:
    """Return a template for `tokenizer.chat_template`.

    `apply_chat_template(messages, tokenize=False)` then equals `render`. As there, a conversation that ends with a
    question ends where the generation starts, with or without `add_generation_prompt`.

    Args:
        tokenizer: Decodes token ids.
        system: For conversations without a system prompt; None: the template's default.

    Raises:
        TemplateError: It cannot be expressed in Jinja: a function that rewrites responses, token ids that the
            tokenizer does not produce from a text, a system prompt where there is no place for one.
    """
    if info.format_answer is not None:
        raise TemplateError(
            "this template rewrites responses with a function, which a chat template file cannot contain"
        )
    if system is not None and not info.has_system_slot:
        raise TemplateError(f"{NO_SYSTEM}, and --system gives one")
    texts = _Texts(tokenizer)
    images = _IMAGES.format(image=_literal(info.image)) if info.image else ""
    content = "written(message['content'])" if images else "message['content']"
    answer_prefix = _literal(info.answer_prefix)
    chat_sep = _raise(TOO_MANY_TURNS)
    if info.chat_sep is not None:
        chat_sep = "\n".join(texts.write(context) for context in info.chat_sep)
    return "\n".join(
        line
        for line in _FRAME.format(
            no_tools=_raise(NO_TOOLS),
            images=images,
            tools="{%- if tools -%}" + _raise(NO_TOOLS) + "{%- endif -%}",
            system=_system(info, system),
            prefix=_contexts(info.prefix, texts, {}, IS_SYSTEM),
            content="{%- set content = " + content + (" | trim" if info.strip else "") + " -%}",
            two_questions=_raise(TWO_QUESTIONS),
            prompt=_contexts(info.prompt, texts, _IN_PROMPT, f"{IS_SYSTEM} and {IS_LAST_QUESTION}"),
            answer_prefix=answer_prefix and LAST_ANSWER.format(answer_prefix),
            answer=_answer(info),
            chat_sep=chat_sep,
            suffix="\n".join(texts.write(context) for context in info.suffix),
            generation=_generation(answer_prefix),
        ).split("\n")
        if line
    )


def _system(info: TemplateInfo, system: str | None) -> str:
    """Write the Jinja that sets `system_text`, possibly none, and `turns`, the messages after the system message."""
    text = system if system is not None else info.default_system
    strips = info.strip and info.strip_system
    trim = " | trim" if strips else ""
    own = "{%- set system_text = messages[0]['content']" + trim + " -%}"
    otherwise = "{%- set system_text = none -%}"
    if text is not None:
        otherwise = "{%- set system_text = " + _quote(text.strip() if strips else text) + " -%}"
    lines = [
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        own if info.has_system_slot else _raise(NO_SYSTEM),
        "{%- set turns = messages[1:] -%}",
        "{%- else -%}",
        otherwise,
        "{%- set turns = messages -%}",
        "{%- endif -%}",
    ]
    if system is None and text is not None:  # plain text, a single answer, takes no default
        lines[3:3] = [
            "{%- elif messages | length == 1 and messages[0]['role'] == 'assistant' -%}",
            "{%- set system_text = none -%}",
            "{%- set turns = messages -%}",
        ]
    return "\n".join(lines)


def _contexts(contexts: tuple[Context, ...], texts: _Texts, variables: dict[str, str], condition: str) -> str:
    """Write contexts. `condition`: when a context with the system prompt is written."""
    lines: list[str] = []
    for context in contexts:
        if isinstance(context, str) and "{{SYSTEM}}" in context:
            written = texts.write(context, variables | {"SYSTEM": _SYSTEM})
            lines.append("{%- if " + condition + " -%}" + written + "{%- endif -%}")
        else:
            lines.append(texts.write(context, variables))
    return "\n".join(lines)


def _answer(info: TemplateInfo) -> str:
    before, _, after = info.answer_format.partition("{{ANSWER}}")
    if not before and not after:
        return "{{- content -}}"
    only_text = "{%- if turns | length == 1 -%}{{- content -}}{%- else -%}"
    return only_text + _literal(before) + "{{- content -}}" + _literal(after) + "{%- endif -%}"


def _generation(answer_prefix: str) -> str:
    lines = [
        "{%- if turns and turns[-1]['role'] != 'assistant' -%}",
        answer_prefix,
        "{%- elif add_generation_prompt -%}",
        _raise(NO_QUESTION),
        "{%- endif -%}",
    ]
    return "\n".join(lines)


class _Texts:
    """Converts contexts to Jinja for one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)

    def write(self, context: Context, variables: dict[str, str] | None = None) -> str:
        if not isinstance(context, str):
            return _literal(self._text_of(context))
        parts: list[str] = []
        position = 0
        for match in PLACEHOLDER.finditer(context):
            if match.group(1) in (variables or {}):
                parts.append(_literal(context[position : match.start()]))
                parts.append("{{- " + (variables or {})[match.group(1)] + " -}}")
                position = match.end()
        return "".join([*parts, _literal(context[position:])])

    def _text_of(self, context: tuple[int | str, ...]) -> str:
        ids = list(self._encoder.sample([Piece(context)]).parts[0].ids or ())
        # Token by token first: some tokenizers decode several with blanks between them.
        for text in ("".join(self._decode([token]) for token in ids), self._decode(ids)):
            if list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) == ids:
                return text
        raise TemplateError(f"the tokenizer produces the template's token ids {ids} from no text")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))


def _literal(text: str) -> str:
    return "{{- " + _quote(text) + " -}}" if text else ""


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for character, name in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        escaped = escaped.replace(character, name)
    return f'"{escaped}"'


def _raise(message: str) -> str:
    return "{{- raise_exception(" + _quote(message) + ") -}}"
