"""A complete tokenizer.json beside a configuration that asks for code: Baichuan2, InternLM2 and others.

What such code adds to the file are names: the configuration's `added_tokens_decoder` gives tokens by their ids, and
those win over what stands at these ids in the file (InternLM2's has `[UNUSED_TOKEN_145]` for `<|im_end|>`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.port import LLAMA_TOKENS, Source, TokenizerPort, text_of
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


FILE = "tokenizer.json"
BAICHUAN_ROLES = (195, 196)
"""`<reserved_106>` begins what the user says, `<reserved_107>` the answer: generation_config.json of Baichuan2-Chat."""


def from_json(source: Source, names: dict[int, str] | None = None) -> Tokenizer:
    """The tokenizer of a folder's tokenizer.json.

    Args:
        names: Special tokens by their ids, besides those of the configuration.

    Raises:
        ModelError: The file has no place for one of them.
    """
    from tokenizers import Tokenizer

    described = read_json(source.folder / FILE)
    added = {int(token): text_of(item) for token, item in source.config.get("added_tokens_decoder", {}).items()}
    flags = {int(token): item for token, item in source.config.get("added_tokens_decoder", {}).items()}
    for token, text in (added | (names or {})).items():
        _name(described, token, str(text), flags.get(token))
    described["added_tokens"].sort(key=lambda item: item["id"])
    _decode_without_loss(described)
    tokenizer = Tokenizer.from_str(json.dumps(described))
    for token, text in (added | (names or {})).items():
        if tokenizer.token_to_id(str(text)) != token:
            raise ModelError(f"{source.folder}: {text} should be token {token}, and {FILE} has no place for it there.")
    return tokenizer


def _name(described: dict[str, Any], token: int, text: str, flags: Any) -> None:
    """Make a text a token of its own at an id. One in brackets is a control token, whatever its flags say."""
    vocabulary = described["model"]["vocab"]
    if isinstance(vocabulary, dict):
        for old in [old for old, at in vocabulary.items() if at == token and old != text]:
            del vocabulary[old]
        vocabulary[text] = token
    # ChatGLM's `sop` is a word's part as well: philosophy. There it must not be found.
    is_word = re.fullmatch(r"\w+", text) is not None
    has_brackets = re.fullmatch(r"<.+>|\[.+\]", text) is not None
    is_special = not isinstance(flags, dict) or bool(flags.get("special")) or is_word or has_brackets
    found: dict[str, Any] = {"lstrip": False, "rstrip": False} | (flags if isinstance(flags, dict) else {})
    found |= {"id": token, "content": text, "single_word": is_word, "special": is_special, "normalized": False}
    described["added_tokens"] = [item for item in described["added_tokens"] if item["id"] != token] + [found]


def _decode_without_loss(described: dict[str, Any]) -> None:
    """A blank that was not put before the text is not taken away from it: InternLM2's file does that."""
    normalizer, decoder = described.get("normalizer") or {}, described.get("decoder") or {}
    puts = any(step["type"] == "Prepend" for step in normalizer.get("normalizers", [normalizer]) if step)
    if decoder.get("type") == "Sequence" and normalizer and not puts and not described.get("pre_tokenizer"):
        decoder["decoders"] = [step for step in decoder["decoders"] if step["type"] != "Strip"]


def _is_baichuan(source: Source) -> bool:
    return source.class_name.lower() == "baichuantokenizer" and source.has(FILE) and source.needs_code


def _baichuan(source: Source) -> Tokenizer:
    vocabulary = read_json(source.folder / FILE)["model"]["vocab"]
    names = {token: text for text, token in vocabulary.items() if token in BAICHUAN_ROLES}
    return from_json(source, {token: text for token, text in names.items() if text.startswith("<reserved")})


BAICHUAN = TokenizerPort(
    family="Baichuan",
    recognises=_is_baichuan,
    files=(FILE,),
    backend=_baichuan,
    defaults={**LLAMA_TOKENS, "add_bos_token": True},
)
PORT = TokenizerPort(
    family="tokenizer.json",
    recognises=lambda source: source.needs_code and source.has(FILE),
    files=(FILE,),
    backend=from_json,
)
