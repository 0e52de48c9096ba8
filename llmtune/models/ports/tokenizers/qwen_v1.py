"""Qwen of 2023: ranks of byte sequences in tiktoken's format, and control tokens above them.

Source: tokenization_qwen.py of Qwen-7B-Chat (pattern, tokens, NFC) and of Qwen-VL-Chat (the tokens around pictures;
GOT-OCR2, which has its vocabulary, has 151857 to 151859 for <img>, </img> and <imgpad>).
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.errors import ModelError
from llmtune.models.ports.tokenizers.port import Source, TokenizerPort, merges_of
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


FILE = "qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"
TOKENS = (END, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
PICTURE_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")


def read_ranks(file: Path) -> dict[bytes, int]:
    """Lines of a byte sequence in base 64 and its rank, which is its id.

    Raises:
        ModelError: There is something else in the file.
    """
    found: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            found[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as err:
            raise ModelError(f"{file}, line {number}: not a token in base 64 and its rank. Download it again.") from err
    if sorted(found.values()) != list(range(len(found))) or len(found) < 256:
        raise ModelError(f"{file} lacks some of its ranks: it may be cut off. Download it again.")
    return found


def _backend(source: Source) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ranks = read_ranks(source.folder / FILE)
    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    tokenizer = Tokenizer(
        models.BPE(
            vocab={spell(token): rank for token, rank in ranks.items()},
            merges=[(spell(left), spell(right)) for left, right in merges_of(ranks)],
            ignore_merges=True,  # tiktoken looks a whole word up before it merges
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    has_pictures = "visual" in read_json(source.folder / "config.json")
    tokens = (*TOKENS, *PICTURE_TOKENS) if has_pictures else TOKENS
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in tokens])
    return tokenizer


PORT = TokenizerPort(
    family="Qwen v1",
    recognises=lambda source: source.has(FILE) and not source.has("tokenizer.json"),
    files=(FILE, "config.json"),
    backend=_backend,
    defaults={"eos_token": END, "pad_token": END},
)
