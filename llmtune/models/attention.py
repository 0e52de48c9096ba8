"""Attention to load a model with: the requested one, if available. No torch here."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need

if TYPE_CHECKING:
    from llmtune.arguments.groups import ModelArguments


FLASH = {
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    "flash_attention_2": ("flash_attn", "flash-attn"),
}
"""Its module, and the package to install."""


def need_attention(name: str | None, *, on_cuda: bool) -> None:
    """Refuse a requested attention that this machine lacks.

    Raises:
        UsageError: It needs CUDA. MissingPackageError: It needs a package.
    """
    if name is None or not name.startswith("flash"):
        return
    if not on_cuda:
        raise UsageError(f"--attn_impl {name} needs a GPU with CUDA. Remove it: elsewhere, sdpa is the fastest.")
    if not (_has(FLASH[name][0]) or _has("kernels")):
        module, package = FLASH[name]
        advice = " (or use --attn_impl varlen of torch, for --packing and --padding_free, or sdpa)"
        need(module, f"--attn_impl {name}", name=package, advice=advice)


def asked_attention(args: ModelArguments, attn_impl: str | None, *, on_cuda: bool) -> str | None:
    """Return the attention to load with; None: chosen for the run later.

    `--use_flash_attn true` is a preference: if FlashAttention is not available, the run warns and uses another.

    Raises:
        UsageError, MissingPackageError: As of `need_attention`.
    """
    need_attention(attn_impl, on_cuda=on_cuda)
    if attn_impl is not None or args.use_flash_attn is None:
        return attn_impl
    if not args.use_flash_attn:
        return "sdpa"
    found = best_flash() if on_cuda else None
    if found is None:
        why = "no package for it is installed (pip install flash-attn)" if on_cuda else "there is no GPU with CUDA"
        get_logger().warning("--use_flash_attn true has no effect: %s.", why)
    return found


def best_flash() -> str | None:
    """Return the newest installed FlashAttention, of those that can train on every GPU they run on."""
    return next((name for name in ("flash_attention_3", "flash_attention_2") if _has(FLASH[name][0])), None)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a part of a package that is not there at all
        return False
