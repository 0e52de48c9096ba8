"""GPUs of each process, and a model's layers spread over several of them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from llmtune.distributed.ranks import local_rank, local_world_size
from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger

MARGIN = 0.9
"""Fraction of a GPU's free memory for weights; the rest is for activations."""


def device_name() -> str:
    """The GPU of this process, or its CPU and threads."""
    return accelerator().name


def own_gpus(num_gpus: int, rank: int, num_processes: int) -> list[int]:
    """Return the GPUs of one process of this machine: its local rank first, then every `num_processes`-th.

    Raises:
        UsageError: There are more processes than GPUs.
    """
    if num_processes > num_gpus:
        raise UsageError(f"{num_processes} processes need as many GPUs, but {num_gpus} are visible: lower --nproc.")
    return list(range(rank, num_gpus, num_processes))


def first_device() -> str:
    """Return the first device of a process's model."""
    found = accelerator()
    if not found.is_gpu:
        return found.kind
    return found.device(own_gpus(found.count, local_rank(), local_world_size())[0])


def memory_limits(free: dict[int, int]) -> dict[int, int]:
    """Return the bytes of weights per GPU. `free`: free bytes of each of the process's GPUs."""
    return {gpu: int(size * MARGIN) for gpu, size in free.items()}


def spread_options(device_map: str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for `--device_map`; empty if one device holds the model.

    Only the process's own GPUs are used: weights on CPU or disk cannot be trained. With one device, the model goes
    there, as several guides pass --device_map auto everywhere.
    """
    if device_map is None:
        return {}
    found = accelerator()
    num_gpus = found.count
    own = own_gpus(num_gpus, local_rank(), local_world_size()) if num_gpus else []
    if len(own) < 2:
        place = found.device(own[0]) if own else "the CPU"
        get_logger().info(f"--device_map {device_map}: this process has one device, {place}, which gets all layers.")
        return {}
    free = {gpu: found.free_memory(gpu) for gpu in own}
    return {"device_map": device_map, "max_memory": memory_limits(free)}


# GPUs by name: memory and half-precision peak. No torch


CONTEXT_GIB = 0.6
"""Allowance for the CUDA context and its kernels, which PyTorch does not count."""

FRAGMENTATION = 0.04
"""Allowance for fragmentation in PyTorch's allocator."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        gib: Memory in GiB, by its data sheet.
        tflops: Dense half-precision tensor peak with fp32 accumulation, in TFLOP/s; 0: unknown.
        bf16: Whether it supports bf16; else the figures are for fp16.
    """

    name: str
    gib: float
    tflops: float = 0.0
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Bytes that a run can fill."""
        return (self.gib * (1 - FRAGMENTATION) - CONTEXT_GIB) * 2**30


# NVIDIA's data sheets of each product, "without sparsity"; of GeForce GPUs, the architecture white papers' figure for
# FP16 with FP32 accumulation (GA102 v2.1, AD102 v1.1, RTX Blackwell v1.1). Each fits PyTorch's device names too, by
# the pattern: the first that is found decides.
GPUS: dict[str, tuple[Gpu, str]] = {
    "B200": (Gpu("B200", 180, 2250), r"\bB200\b"),
    "H200": (Gpu("H200", 140, 989), r"\bH200\b"),
    "H20": (Gpu("H20", 96, 148), r"\bH20\b"),
    "H100-PCIe": (Gpu("H100-PCIe", 80, 756), r"\bH100 PCIe\b"),
    "H100": (Gpu("H100", 80, 989), r"\bH100\b"),
    "H800": (Gpu("H800", 80, 989), r"\bH800\b"),
    "A100-40": (Gpu("A100-40", 40, 312), r"\bA100\b.*40GB"),
    "A100-80": (Gpu("A100-80", 80, 312), r"\bA100\b"),
    "A800": (Gpu("A800", 80, 312), r"\bA800\b"),
    "A40": (Gpu("A40", 48, 149.7), r"\bA40\b"),
    "A30": (Gpu("A30", 24, 165), r"\bA30\b"),
    "A10": (Gpu("A10", 24, 125), r"\bA10G?\b"),
    "A6000": (Gpu("A6000", 48, 154.8), r"\bA6000\b"),
    "6000-Ada": (Gpu("6000-Ada", 48, 364.2), r"6000 Ada"),
    "L40S": (Gpu("L40S", 48, 362), r"\bL40S\b"),
    "L40": (Gpu("L40", 48, 181), r"\bL40\b"),
    "L4": (Gpu("L4", 24, 121), r"\bL4\b"),
    "5090": (Gpu("5090", 32, 209.5), r"\bRTX 5090\b(?! Laptop)"),
    "4090": (Gpu("4090", 24, 165.2), r"\bRTX 4090\b(?! Laptop)"),
    "4080": (Gpu("4080", 16, 97.5), r"\bRTX 4080\b(?! (Laptop|SUPER))"),
    "3090": (Gpu("3090", 24, 71), r"\bRTX 3090\b(?! Ti)"),
    "V100-32": (Gpu("V100-32", 32, 125, bf16=False), r"\bV100\b.*32GB"),
    "V100": (Gpu("V100", 16, 125, bf16=False), r"\bV100\b"),
    "T4": (Gpu("T4", 16, 65, bf16=False), r"\bT4\b"),
}
_ALSO = {"A100": "A100-80", "A100-80G": "A100-80", "A100-40G": "A100-40", "V100-16": "V100", "A10G": "A10"}


def find_gpus(text: str) -> tuple[int, Gpu]:
    """Number and kind of GPUs: `24GB` and `A100-80` are one, `2x24GB` and `4 x A100-80` several.

    Raises:
        UsageError: No such GPU.
    """
    several = re.fullmatch(r"([1-9][0-9]*)\s*[x*]\s*(\S.*)", text.strip(), re.IGNORECASE)
    return (int(several[1]), find_gpu(several[2])) if several else (1, find_gpu(text))


def find_gpu(text: str) -> Gpu:
    """Return a GPU by its name (`A100-80`, `4090`, `RTX 3090`) or by its memory (`24GB`).

    Raises:
        UsageError: Neither.
    """
    size = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:G|GB|GiB)", text.strip(), re.IGNORECASE)
    if size:
        return Gpu(f"{float(size[1]):g} GB GPU", float(size[1]))
    by_name = {_plain(name): gpu for name, (gpu, _) in GPUS.items()}
    by_name |= {_plain(name): GPUS[target][0] for name, target in _ALSO.items()}
    wanted = _plain(text)
    if wanted in by_name:
        return by_name[wanted]
    near = difflib.get_close_matches(wanted, by_name, n=1)
    hint = f" Did you mean {by_name[near[0]].name}?" if near else ""
    raise UsageError(f"--gpu {text}: no such GPU.{hint} Give its memory (24GB), or one of {', '.join(GPUS)}.")


def gpu_of_device(name: str) -> Gpu | None:
    """Return the GPU of a PyTorch device name (`NVIDIA A100-SXM4-80GB`); None if unknown."""
    return next((gpu for gpu, pattern in GPUS.values() if re.search(pattern, name.replace("-", " "))), None)


def gib(num_bytes: float) -> str:
    """Format bytes as MiB or GiB."""
    if num_bytes < 2**30 / 10:
        return f"{num_bytes / 2**20:,.1f} MiB"
    return f"{num_bytes / 2**30:,.2f} GiB"


def _plain(name: str) -> str:
    text = re.sub(r"nvidia|geforce|rtx|tesla|[\s_-]", "", name.lower())
    return re.sub(r"(?:gb|g)$", "", text) if re.search(r"\dgb?$", text) and text != "a10g" else text
