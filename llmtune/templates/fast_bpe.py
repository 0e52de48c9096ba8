"""Byte-level BPE through tiktoken: the same ids at a fifth of the cost, for tokenizers that pass a check.

tiktoken supports one pattern, ranks equal to ids, and control tokens matched by their spelling. A tokenizer that needs
more, or gives another id for any of its tokens, any character or any of the probes, is left to transformers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.templates.verified_bpe import VERIFIED
from llmtune.utils.files import cache_root, read_json, write_json
from llmtune.utils.memory import give_back_memory

if TYPE_CHECKING:
    from tiktoken import Encoding


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Pattern of the ByteLevel pre-tokeniser where no pattern precedes it."""

PROBES = (
    "I'll say 'S and 'ſ, we'RE; isn't?  two  blanks\n\n\nlines \r\n tabs\t\t end \u3000 \u00a0 \u200b.",
    "1234567 3.14 ١٢٣ ⅷ x² ½ 你好，世界！🙂👍🏽👩‍👩‍👧 นี่ ปี é Ωmega ǅ __init__(self) -> None: \x00\x7f",
    " leading, trailing ",
    "\n",
    "   \n   \n",
)


class FastBPE:
    """Encoder of text for one tokenizer, with the ends of tokens."""

    def __init__(self, encoding: Encoding, *, is_nfc: bool) -> None:
        self._encoding = encoding
        self._special = encoding.special_tokens_set
        self._is_nfc = is_nfc
        # upstream: tiktoken 0.14.0 tiktoken/core.py: the ranks have no public name
        lengths = {index: len(spelling.encode()) for spelling, index in encoding._special_tokens.items()}
        lengths |= {index: len(spelling) for spelling, index in encoding._mergeable_ranks.items()}
        self._lengths = [lengths.get(index, 0) for index in range(encoding.n_vocab)]

    def takes(self, text: str) -> bool:
        """Return whether a text can be encoded here: one that a normaliser would change cannot."""
        return not self._is_nfc or text.isascii() or unicodedata.is_normalized("NFC", text)

    def ids(self, text: str) -> list[int]:
        # upstream: tiktoken 0.14.0 tiktoken/core.py: encode replaces lone surrogates, and takes a set per call
        ids: list[int] = self._encoding._core_bpe.encode(text, self._special)
        return ids

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Return the end of each token, in bytes of the UTF-8 text."""
        return list(accumulate(map(self._lengths.__getitem__, ids)))


def fast_bpe(tokenizer: Any) -> FastBPE | None:
    """Return the fast BPE of a tokenizer, None where there is none; the verdict is cached."""
    try:
        import tiktoken
    except ImportError:
        return None
    if not getattr(tokenizer, "is_fast", False):
        return None
    described = tokenizer.backend_tokenizer.to_str()
    spec = json.loads(described)
    pattern = _pattern(spec)
    ranks = _ranks(spec) if pattern is not None else None
    if ranks is None:
        return None
    special = {token["content"]: token["id"] for token in spec["added_tokens"]}
    encoding = tiktoken.Encoding("own", pat_str=pattern or "", mergeable_ranks=ranks, special_tokens=special)
    found = FastBPE(encoding, is_nfc=spec["normalizer"] is not None)
    give_back_memory()
    return found if _verdict(described, lambda: _agrees(found, tokenizer, ranks)) else None


def _pattern(spec: dict[str, Any]) -> str | None:
    """Return the single regular expression that splits text before BPE; None where there is more to it."""
    normaliser, split = spec["normalizer"], spec["pre_tokenizer"] or {}
    if normaliser is not None and normaliser.get("type") != "NFC":
        return None
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in spec["added_tokens"]):
        return None
    if split.get("type") == "ByteLevel":
        return GPT2_PATTERN if split.get("use_regex", True) and not split["add_prefix_space"] else None
    parts = split.get("pretokenizers", [])
    if [part["type"] for part in parts] != ["Split", "ByteLevel"]:
        return None
    first, second = parts
    plain = first["behavior"] == "Isolated" and not first["invert"] and "Regex" in first["pattern"]
    plain = plain and not second["add_prefix_space"] and not second.get("use_regex", True)
    return str(first["pattern"]["Regex"]) if plain else None


def _ranks(spec: dict[str, Any]) -> dict[bytes, int] | None:
    """Return bytes -> id, where ids follow the order of the merges, as ranks do. The spec loses its vocabulary."""
    model = spec["model"]
    if model["type"] != "BPE" or any(
        model.get(name) for name in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    if model.get("byte_fallback") or model.get("fuse_unk"):
        return None
    vocabulary, to_byte = model.pop("vocab"), _bytes_of_characters()  # 60 MiB of 150,000 tokens, with the merges
    merged = (pair if isinstance(pair, list) else pair.split(" ") for pair in model.pop("merges"))
    order = [vocabulary.get("".join(pair), -1) for pair in merged]
    del merged
    if any(one > other for one, other in pairwise(order)):
        return None
    added = {token["content"] for token in spec["added_tokens"]}
    try:
        spelled = {token: index for token, index in vocabulary.items() if token not in added}
        ranks = {bytes(map(to_byte.__getitem__, token)): index for token, index in spelled.items()}
    except KeyError:
        return None
    return ranks if all(bytes([byte]) in ranks for byte in range(256)) else None


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the alphabet of byte-level BPE: printable bytes map to themselves, the others to 256, 257, ..."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _agrees(found: FastBPE, tokenizer: Any, ranks: dict[bytes, int]) -> bool:
    """Compare with the Rust tokenizer on all tokens, all characters, the control tokens and the probes."""
    backend = tokenizer.backend_tokenizer
    for texts in _groups(_texts(found, ranks), 1000):
        mine = [text for text in texts if found.takes(text)]
        for text, theirs in zip(mine, backend.encode_batch(mine, add_special_tokens=False), strict=True):
            ids = found.ids(text)
            if ids != theirs.ids or (found.ends(ids) or [0])[-1] != len(text.encode()):
                return False
    return True


def _texts(found: FastBPE, ranks: dict[bytes, int]) -> Iterator[str]:
    yield from PROBES
    yield from (f"a{token}{token} {token}\n" for token in found._special)
    for spelling in ranks:
        try:
            yield spelling.decode()
        except UnicodeDecodeError:
            continue
    known = (chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co"))
    yield from (" ".join(f"a{one}1{one}" for one in some) for some in _groups(known, 40))


def _groups(items: Iterable[str], size: int) -> Iterator[list[str]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _verdict(described: str, check: Callable[[], bool]) -> bool:
    """Return the result of the check, made once per tokenizer and versions of both libraries.

    For known tokenizers it was made before, see `llmtune.templates.verified_bpe`.
    """
    if verified_key(described) in VERIFIED:
        return True
    source = Path(__file__).read_text(encoding="utf-8")
    key = hashlib.sha256(f"{described}{_versions()}{source}".encode()).hexdigest()[:32]
    file = cache_root() / "fast_bpe" / f"{key}.json"
    agrees = read_json(file).get("agrees")
    if not isinstance(agrees, bool):  # missing or damaged
        agrees = check()
        write_json(file, {"agrees": agrees})
    return agrees


def verified_key(described: str) -> str:
    """Return the key in VERIFIED: of the tokenizer, of this file and of the releases of both libraries.

    Those of patches, the third number, are left out; below 1.0 the second number is the major one.
    """
    source = Path(__file__).read_text(encoding="utf-8")
    releases = " ".join(".".join(one.split(".")[:2]) for one in _versions().split(" "))
    return hashlib.sha256(f"{described}{releases}{source}".encode()).hexdigest()[:32]


def _versions() -> str:
    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "?"

    return f"{of('tiktoken')} {of('tokenizers')}"
