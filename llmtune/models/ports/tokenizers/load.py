"""Load a tokenizer through its port. The tokenizer.json that it makes is kept in the cache: some take seconds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.port import Source, TokenizerPort, text_of
from llmtune.utils.files import cache_root, is_sealed, write_sealed
from llmtune.utils.logging import get_logger

VERSION = 1
"""To be raised when a port makes something else of the same files."""

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
CARRIED = ("add_bos_token", "add_eos_token", "chat_template", "model_max_length", "padding_side")


def find_tokenizer_port(folder: str | Path) -> TokenizerPort | None:
    """The port of a folder's tokenizer. None: transformers loads it by itself, or not at all."""
    from llmtune.models.ports.tokenizers import chatglm, json_file, qwen_v1, sentencepiece_bpe

    source = Source(Path(folder))
    ports = (qwen_v1.PORT, chatglm.PORT, json_file.BAICHUAN, json_file.PORT, sentencepiece_bpe.PORT)
    return next((port for port in ports if port.recognises(source)), None)


def tokenizer_loader(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the loader of this folder's tokenizer: an object with the `from_pretrained` of transformers' classes."""
    port = None if trust_remote_code else find_tokenizer_port(folder)
    if port is not None:
        return PortedTokenizer(port)
    from transformers import AutoTokenizer

    return AutoTokenizer


class PortedTokenizer:
    """Loads tokenizers of one kind as PreTrainedTokenizerFast."""

    def __init__(self, port: TokenizerPort) -> None:
        self.port = port

    def from_pretrained(self, folder: str | Path, *, trust_remote_code: bool = False) -> Any:
        """Load a folder.

        Args:
            trust_remote_code: Accepted for the sake of the signature; a port runs no code of the checkpoint.

        Raises:
            ModelError: Files are broken, or hold what the port cannot carry over.
        """
        from transformers import PreTrainedTokenizerFast

        source = Source(Path(folder))
        file = _tokenizer_file(self.port, source)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file), clean_up_tokenization_spaces=False, **_arguments(self.port, source)
        )
        tokenizer.name_or_path = str(folder)
        get_logger().debug(f"Made the tokenizer of {folder} ({self.port.family}): no code of the checkpoint is run.")
        return tokenizer


def _arguments(port: TokenizerPort, source: Source) -> dict[str, Any]:
    config = dict(port.defaults) | source.config
    found = {key: config[key] for key in CARRIED if config.get(key) is not None}
    template = source.folder / "chat_template.jinja"
    if template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    return found | _special_tokens(port, source)


def _special_tokens(port: TokenizerPort, source: Source) -> dict[str, str]:
    config = dict(port.defaults) | source.config
    texts = {key: text_of(config.get(key)) for key in SPECIAL}
    return {key: text for key, text in texts.items() if text}


def _tokenizer_file(port: TokenizerPort, source: Source) -> Path:
    """The tokenizer.json of a folder, from the cache if it was made before."""
    file = cache_root() / "tokenizers" / f"{_key(port, source)}.json"
    if not is_sealed(file):
        if file.exists():
            get_logger().warning(f"The tokenizer of {source.folder} in the cache is damaged; it is made anew.")
        backend = port.backend(source)
        for key, text in _special_tokens(port, source).items():
            if backend.token_to_id(text) is None:  # transformers would give it an id beyond the model's embedding
                raise ModelError(f"{source.folder}: its {key} is {text!r}, which is not in its vocabulary.")
        write_sealed(file, backend.to_str())
    return file


def _key(port: TokenizerPort, source: Source) -> str:
    versions = f"{VERSION} {importlib.metadata.version('tokenizers')}"
    digest = hashlib.sha256(f"{versions} {port.family} {json.dumps(source.config, sort_keys=True)}".encode())
    for name in port.files:
        if source.has(name):
            digest.update(hashlib.sha256((source.folder / name).read_bytes()).digest())
    return digest.hexdigest()[:32]
