"""Tokenizers of the tests on templates: the real ones where they are at hand, the embedded one always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def real_tokenizer(assets: Path) -> Any:
    """name -> tokenizer, each loaded once, as the library loads it: without remote code."""
    from llmtune.models.ports.tokenizers import tokenizer_loader

    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            folder = assets / "tokenizers" / name
            if not folder.is_dir():
                pytest.skip(f"no tokenizer {name} among the test assets")
            loaded[name] = tokenizer_loader(folder).from_pretrained(str(folder), trust_remote_code=False)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    return AutoTokenizer.from_pretrained(str(tiny_folder()))


@pytest.fixture(scope="session")
def eyes(vision_folder) -> Any:
    """kind -> a tokenizer that sees."""
    from llmtune.models.loading import get_model_tokenizer

    from ..tiny_vision import KEYS

    made: dict[str, Any] = {}

    def tokenizer(kind: str = "qwen2-vl") -> Any:
        if kind not in made:
            made[kind] = get_model_tokenizer(KEYS[kind], model_id_or_path=str(vision_folder(kind)), load_model=False)[1]
        return made[kind]

    return tokenizer
