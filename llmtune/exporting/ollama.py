"""Ollama Modelfile: model file, chat template in Go's text/template, stop words, system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments.export import ExportArguments
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo
from llmtune.templates.pieces import Context
from llmtune.utils.files import write_text
from llmtune.utils.logging import get_logger

OPEN = '{{ "{{" }}'
"""Two literal braces in Go's templates."""


def write_modelfile(args: ExportArguments, folder: Path, tokenizer: Any) -> None:
    """Write `Modelfile` beside `model.gguf`. Run it: `ollama create NAME -f Modelfile`, in that folder."""
    name = str(args.inferred.template_type)
    info = TEMPLATE_MAPPING[name]
    lines = ["FROM ./model.gguf"]
    reason = why_not(info)
    if reason:
        get_logger().warning(
            "The Modelfile has no TEMPLATE, since the template %r %s: Ollama uses the GGUF file's chat template.",
            name,
            reason,
        )
    else:
        lines.append(f'TEMPLATE """{go_template(info, tokenizer, added=added_text(tokenizer))}"""')
    stops = [_texts(info.suffix, tokenizer).strip(), *info.stop_words]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops) if stop]
    given = (args.system, args.inferred.system, info.default_system)
    system = next((text for text in given if text is not None), None)
    if system:
        lines.append(f'SYSTEM """{system}"""')
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def why_not(info: TemplateInfo) -> str:
    """Return why a template cannot be expressed in Go's language by prefix, prompt and chat_sep; "" if it can."""
    texts = [context for context in (*info.prefix, *info.prompt, *(info.chat_sep or ())) if isinstance(context, str)]
    if info.from_tokenizer:
        return "is the tokenizer's own"
    if info.chat_sep is None:
        return "supports one turn only"
    if any("{{ROUND" in text for text in texts):
        return "counts the rounds"
    if any(isinstance(context, str) and "{{SYSTEM}}" in context for context in info.prompt):
        return "writes the system prompt at the last question"
    if info.format_answer is not None or info.answer_prefix or info.answer_format != "{{ANSWER}}":
        return "writes responses by their place"
    return ""


def added_text(tokenizer: Any) -> str:
    """Return the token that llama.cpp, like the tokenizer, puts before any text; "" where there is none."""
    ids = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def go_template(info: TemplateInfo, tokenizer: Any, added: str = "") -> str:
    """Return the template for Ollama's `.System` and `.Messages`; a prompt ends where the generation starts.

    Args:
        added: Text that llama.cpp puts before it, and would be duplicated.
    """
    with_system, without = [], []
    for context in info.prefix:
        text = _text(context, tokenizer)
        if isinstance(context, str) and "{{SYSTEM}}" in context:
            with_system.append(text.replace("{{SYSTEM}}", "\0"))
        else:
            with_system.append(text)
            without.append(text)
    first = _escaped("".join(with_system).removeprefix(added)).replace("\0", "{{ .System }}")
    bare = _escaped("".join(without).removeprefix(added))
    head = first if first == bare else "{{ if .System }}" + first + ("{{ else }}" + bare if bare else "") + "{{ end }}"
    question = _escaped(_texts(info.prompt, tokenizer).replace("{{QUERY}}", "\0")).replace("\0", "{{ .Content }}")
    between = _escaped(_texts(info.chat_sep or (), tokenizer))
    return (
        head
        + '{{ range .Messages }}{{ if eq .Role "user" }}'
        + question
        + '{{ else if eq .Role "assistant" }}{{ .Content }}'
        + between
        + "{{ end }}{{ end }}"
    )


def _texts(contexts: Sequence[Context], tokenizer: Any) -> str:
    return "".join(_text(context, tokenizer) for context in contexts)


def _text(context: Context, tokenizer: Any) -> str:
    """Return a context as text; ids and attributes are decoded by the tokenizer."""
    if isinstance(context, str):
        return context
    ids = [getattr(tokenizer, part) if isinstance(part, str) else part for part in context]
    return str(tokenizer.decode([number for number in ids if number is not None], skip_special_tokens=False))


def _escaped(text: str) -> str:
    return text.replace("{{", OPEN)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
