"""Tokenizers of the tests on templates: the real ones where they are at hand, the embedded one always."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def load_tokenizer(folder: Path, scratch: Path) -> Any:
    """A tokenizer of the shared folder, without its remote code.

    InternLM2's and ChatGLM3's files lack what their own code adds: names of control tokens, which stand in their
    configuration.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "auto_map" not in config:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = {int(token): item for token, item in config["added_tokens_decoder"].items()}
    vocabulary = described["model"]["vocab"]
    for text in [text for text, token in vocabulary.items() if token in names]:
        del vocabulary[text]
    vocabulary.update({item["content"]: token for token, item in names.items()})
    added = [item for item in described["added_tokens"] if item["id"] not in names]
    described["added_tokens"] = added + [
        {"id": token, **item, "normalized": False} for token, item in sorted(names.items())
    ]
    file = scratch / f"{folder.name}.json"
    file.write_text(json.dumps(described), encoding="utf-8")
    special = {name: config.get(name) for name in ("eos_token", "bos_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **special)
    tokenizer.chat_template = config["chat_template"]
    return tokenizer


@pytest.fixture(scope="session")
def real_tokenizer(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> tokenizer, each loaded once."""
    scratch = tmp_path_factory.mktemp("tokenizers")
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            folder = assets / "tokenizers" / name
            if not folder.is_dir():
                pytest.skip(f"no tokenizer {name} among the test assets")
            loaded[name] = load_tokenizer(folder, scratch)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    return AutoTokenizer.from_pretrained(str(tiny_folder()))
