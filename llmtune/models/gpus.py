"""GPUs by name: how much memory, how fast in half precision. No torch."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from llmtune.errors import UsageError

__all__ = ["CARDS", "Card", "card_of_device", "find_card", "find_cards", "gib"]

CONTEXT_GIB = 0.6
"""An allowance for CUDA's own context and the kernels loaded into it, which PyTorch does not count."""

FRAGMENTATION = 0.04
"""An allowance for memory that PyTorch's allocator holds in pieces too small to give out."""


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU.

    Attributes:
        gib: Memory in GiB, as its data sheet counts it.
        tflops: Dense half-precision tensor operations with fp32 accumulation, in 10^12 a second; 0: not known.
        bf16: Whether it computes bf16; else fp16 is meant.
    """

    name: str
    gib: float
    tflops: float = 0.0
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Bytes that a run can fill."""
        return (self.gib * (1 - FRAGMENTATION) - CONTEXT_GIB) * 2**30


# NVIDIA's data sheets of each product, "without sparsity"; of GeForce cards, the architecture white papers' figure for
# FP16 with FP32 accumulation (GA102 v2.1, AD102 v1.1, RTX Blackwell v1.1). Each fits PyTorch's device names too, by
# the pattern: the first that is found decides.
CARDS: dict[str, tuple[Card, str]] = {
    "B200": (Card("B200", 180, 2250), r"\bB200\b"),
    "H200": (Card("H200", 140, 989), r"\bH200\b"),
    "H20": (Card("H20", 96, 148), r"\bH20\b"),
    "H100-PCIe": (Card("H100-PCIe", 80, 756), r"\bH100 PCIe\b"),
    "H100": (Card("H100", 80, 989), r"\bH100\b"),
    "H800": (Card("H800", 80, 989), r"\bH800\b"),
    "A100-40": (Card("A100-40", 40, 312), r"\bA100\b.*40GB"),
    "A100-80": (Card("A100-80", 80, 312), r"\bA100\b"),
    "A800": (Card("A800", 80, 312), r"\bA800\b"),
    "A40": (Card("A40", 48, 149.7), r"\bA40\b"),
    "A30": (Card("A30", 24, 165), r"\bA30\b"),
    "A10": (Card("A10", 24, 125), r"\bA10G?\b"),
    "A6000": (Card("A6000", 48, 154.8), r"\bA6000\b"),
    "6000-Ada": (Card("6000-Ada", 48, 364.2), r"6000 Ada"),
    "L40S": (Card("L40S", 48, 362), r"\bL40S\b"),
    "L40": (Card("L40", 48, 181), r"\bL40\b"),
    "L4": (Card("L4", 24, 121), r"\bL4\b"),
    "5090": (Card("5090", 32, 209.5), r"\bRTX 5090\b(?! Laptop)"),
    "4090": (Card("4090", 24, 165.2), r"\bRTX 4090\b(?! Laptop)"),
    "4080": (Card("4080", 16, 97.5), r"\bRTX 4080\b(?! (Laptop|SUPER))"),
    "3090": (Card("3090", 24, 71), r"\bRTX 3090\b(?! Ti)"),
    "V100-32": (Card("V100-32", 32, 125, bf16=False), r"\bV100\b.*32GB"),
    "V100": (Card("V100", 16, 125, bf16=False), r"\bV100\b"),
    "T4": (Card("T4", 16, 65, bf16=False), r"\bT4\b"),
}
_ALSO = {"A100": "A100-80", "A100-80G": "A100-80", "A100-40G": "A100-40", "V100-16": "V100", "A10G": "A10"}


def find_cards(text: str) -> tuple[int, Card]:
    """How many, and which: `24GB` and `A100-80` are one, `2x24GB` and `4 x A100-80` several.

    Raises:
        UsageError: No such card.
    """
    several = re.fullmatch(r"([1-9][0-9]*)\s*[x*]\s*(\S.*)", text.strip(), re.IGNORECASE)
    return (int(several[1]), find_card(several[2])) if several else (1, find_card(text))


def find_card(text: str) -> Card:
    """A card by its name (`A100-80`, `4090`, `RTX 3090`) or by its memory (`24GB`).

    Raises:
        UsageError: Neither.
    """
    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:G|GB|GiB)", text.strip(), re.IGNORECASE)
    if size:
        return Card(f"{float(size[1]):g} GB card", float(size[1]))
    by_name = {_plain(name): card for name, (card, _) in CARDS.items()}
    by_name |= {_plain(name): CARDS[target][0] for name, target in _ALSO.items()}
    wanted = _plain(text)
    if wanted in by_name:
        return by_name[wanted]
    near = difflib.get_close_matches(wanted, by_name, n=1)
    hint = f" Did you mean {by_name[near[0]].name}?" if near else ""
    raise UsageError(f"--gpu {text}: no such card.{hint} Give its memory, as 24GB, or one of {', '.join(CARDS)}.")


def card_of_device(name: str) -> Card | None:
    """The card behind PyTorch's name of a device, `NVIDIA A100-SXM4-80GB` say; None where it is not known here."""
    return next((card for card, pattern in CARDS.values() if re.search(pattern, name.replace("-", " "))), None)


def gib(num_bytes: float) -> str:
    """Bytes for people."""
    if num_bytes < 2**30 / 10:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / 2**30:,.2f} GiB"


def _plain(name: str) -> str:
    text = re.sub(r"nvidia|geforce|rtx|tesla|[\s_-]", "", name.lower())
    return re.sub(r"(?:gb|g)$", "", text) if re.search(r"\dgb?$", text) and text != "a10g" else text
