"""How much is computed again in the backward pass under `--gradient_checkpointing auto`: as little as memory allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from llmtune.errors import LlmtuneError
from llmtune.models.gpus import gib
from llmtune.models.loading import resolve_dtype
from llmtune.planning.memory import Batch, Estimator
from llmtune.planning.sharding import sharding_of
from llmtune.planning.workload import Workload, rows_of
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from llmtune.arguments.sft import SftArguments
    from llmtune.models.info import ModelInfo
    from llmtune.run.log import Decisions
    from llmtune.samples.prepare import Prepared

__all__ = ["decide_checkpointing", "free_memory", "least_checkpointing", "resolve_checkpointing", "surely_fits"]

GPU_SHARE, CPU_SHARE = 0.92, 0.8
"""Of the free memory: the allocator's fragments on a GPU; on a CPU also all else that runs on the machine."""

Mode = Literal["none", "selective", "full"]
MODES: tuple[Mode, ...] = ("none", "selective", "full")


def resolve_checkpointing(args: SftArguments, prepared: Prepared, decisions: Decisions) -> SftArguments:
    """The arguments with what `--gradient_checkpointing auto` comes to on this machine, and a line that says why."""
    if args.gradient_checkpointing != "auto":
        return args
    folder = args.folder()
    batch = Workload.of(args, rows_of(prepared)).batch
    dtype, _ = resolve_dtype(prepared.info, args.dtype)
    mode, reason = decide_checkpointing(args, prepared.info, folder, dtype, batch)
    decisions.note(reason)
    resolved = copy.copy(args)
    resolved.gradient_checkpointing = mode
    return resolved


def decide_checkpointing(
    args: SftArguments, info: ModelInfo, folder: Path, dtype: torch.dtype, batch: Batch
) -> tuple[Mode, str]:
    """The mode for a run on this machine, and the line that says why. `dtype`: what is computed in."""
    on_gpu = torch.cuda.is_available()
    sharding = sharding_of(args, torch.cuda.device_count() if on_gpu else 0)
    free = free_memory() // (1 if on_gpu else sharding.ranks)  # processes on CPUs share the machine's
    limit = free * (GPU_SHARE if on_gpu else CPU_SHARE)
    if surely_fits(read_json(folder / "config.json"), batch, limit):
        return "none", f"Gradient checkpointing off: the run needs far less than the {gib(free)} that are free."
    estimator = Estimator(info, folder, dtype, on_gpu=on_gpu)
    try:
        mode, total = least_checkpointing(args, lambda one: estimator.estimate(one, batch, sharding).total, limit)
    except (LlmtuneError, RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError) as err:
        reason = " ".join(str(err).split())[:120] or type(err).__name__
        return "none", (
            f"Gradient checkpointing off: this model's memory cannot be estimated ({reason}). "
            "Where memory does not suffice: --gradient_checkpointing full."
        )
    if mode == "none":
        return mode, f"Gradient checkpointing off: the run needs about {gib(total)} of {gib(free)} that are free."
    less = "even so, memory may not suffice" if total > limit else "with less of it, the run does not fit"
    return mode, (
        f"Gradient checkpointing {mode}: so the run needs about {gib(total)} of {gib(free)} that are free; {less}. "
        "It costs compute; `llmtune plan` with the same flags shows other ways."
    )


def least_checkpointing(args: SftArguments, total_of: Callable[[SftArguments], int], limit: float) -> tuple[Mode, int]:
    """The first of none, selective and full whose total is below `limit`, or full; and that total."""
    mode, total = MODES[0], 0
    for mode in MODES:
        tried = copy.copy(args)
        tried.gradient_checkpointing = mode
        total = total_of(tried)
        if total <= limit:
            break
    return mode, total


def free_memory() -> int:
    """Bytes that a run can have on this machine: of its GPU, else of its memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def surely_fits(config: dict[str, Any], batch: Batch, limit: float) -> bool:
    """Whether a bound that is far too high lies below the limit: then nothing has to be traced, which takes seconds.

    A layer keeps 34 numbers a token and hidden unit in half precision (Korthikanti et al., arXiv 2205.05198, section
    4); taken here are fp32, adapters and a mask for each layer, and that doubled.
    """
    text = config | config.get("text_config", {})
    names = ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
    if not all(isinstance(text.get(name), int) for name in names):
        return False
    hidden, layers, vocabulary, heads = (int(text[name]) for name in names)
    middle = max(int(text.get("intermediate_size") or 4 * hidden), hidden)
    experts = max(int(text.get(name) or 1) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
    middle *= experts
    weights = layers * (6 * hidden**2 + 3 * hidden * middle) + 2 * vocabulary * hidden
    tokens = batch.size * batch.length
    kept = tokens * layers * (40 * hidden + 16 * middle) + layers * batch.size * batch.length**2 * (heads + 4)
    loss = 1024 * vocabulary + vocabulary * hidden
    return (weights * 20 + (kept + loss) * 4) * 2 <= limit
