"""Find the registered template that equals a model folder's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.errors import TemplateError
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo
from llmtune.templates.pieces import Piece
from llmtune.templates.template import render
from llmtune.templates.vetted import vetted
from llmtune.types import Conversation, Message
from llmtune.utils.files import read_json

PROBES = (
    (Message("user", "Hello"),),
    (Message("user", "One"), Message("assistant", "Two"), Message("user", "Three")),
    (Message("system", "Be brief."), Message("user", "Hello")),
    (Message("user", "Hello"), Message("assistant", "Good day")),
)


def matching_template(folder: Path, prefer: Sequence[str] = ()) -> tuple[str | None, str]:
    """Return the template of a model folder, and the reason.

    Raises:
        TemplateError: Its chat template loops forever, or builds gigabytes.

    Returns:
        A key of TEMPLATE_MAPPING, `auto` where only the folder's own chat template will do, or None where it has none.
    """
    source, tokens = chat_template_of(folder)
    if source is None:
        return None, "its tokenizer has no chat template"
    theirs = vetted(lambda: [_render_theirs(source, tokens, probe) for probe in PROBES])
    keys = [key for key in TEMPLATE_MAPPING if not TEMPLATE_MAPPING.origin(key).startswith("plugin ")]
    for key in dict.fromkeys([*prefer, *keys]):
        if key == "auto":
            continue
        ours = [_render_ours(TEMPLATE_MAPPING[key], tokens, probe) for probe in PROBES]
        if all(_agree(one, other) for one, other in zip(ours, theirs, strict=True)) and ours[0] is not None:
            return key, f"its chat template is that of {key}"
    return "auto", "its chat template is its own"


def chat_template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the Jinja source of a folder's chat template, and the texts of its special tokens."""
    config = read_json(folder / "tokenizer_config.json")
    tokens = _special_tokens(read_json(folder / "special_tokens_map.json")) | _special_tokens(config)
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), tokens
    source = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((one["template"] for one in source if one.get("name") == "default"), None)
    return source, tokens


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for name, value in config.items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[name] = text
    return tokens


def _render_theirs(source: str, tokens: dict[str, str], probe: tuple[Message, ...]) -> str | None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": message.role, "content": message.content} for message in probe]
    asks = probe[-1].role == "user"
    try:
        texts, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=asks, **tokens)
    except MemoryError:
        raise
    except Exception:  # a template may raise anything for a conversation that it refuses
        return None
    return str(texts[0])


def _render_ours(info: TemplateInfo, tokens: dict[str, str], probe: tuple[Message, ...]) -> str | None:
    try:
        pieces = render(info, Conversation(probe), generation=probe[-1].role == "user")
        return "".join(_text_of(piece, tokens) for piece in pieces)
    except (TemplateError, KeyError):
        return None


def _text_of(piece: Piece, tokens: dict[str, str]) -> str:
    if isinstance(piece.content, str):
        return piece.content
    return "".join(tokens[str(item).removesuffix("_id")] for item in piece.content)


def _agree(ours: str | None, theirs: str | None) -> bool:
    """Return whether they are equal, up to white space after the last stop token. Both must refuse the same rows."""
    if ours is None or theirs is None:
        return ours is theirs
    return ours == theirs or (theirs.startswith(ours) and not theirs[len(ours) :].strip())
