"""`--gradient_checkpointing auto`: as little recomputation in the backward pass as memory allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from llmtune.errors import LlmtuneError, one_line
from llmtune.models.devices import gib
from llmtune.models.dtypes import resolve_dtype
from llmtune.planning.memory import Estimator
from llmtune.planning.workload import Batch, Workload, sample_lengths, sharding_of
from llmtune.utils.accelerator import accelerator
from llmtune.utils.files import read_json

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo
    from llmtune.run.log import Decisions
    from llmtune.samples.prepare import Prepared


GPU_SHARE, CPU_SHARE = 0.92, 0.8
"""Usable fraction of the free memory: a GPU's allocator fragments it; a CPU's is shared with other programs."""

Mode = Literal["none", "selective", "full"]
MODES: tuple[Mode, ...] = ("none", "selective", "full")


def resolve_checkpointing(args: StageArguments, prepared: Prepared, decisions: Decisions) -> StageArguments:
    """Return the arguments with `--gradient_checkpointing auto` resolved for this machine, and note why."""
    if args.gradient_checkpointing != "auto":
        decisions.choose("Gradient checkpointing", args.gradient_checkpointing)
        return args
    folder = args.folder()
    batch = Workload.of(args, sample_lengths(prepared)).batch
    dtype, _ = resolve_dtype(prepared.info, args.dtype)
    mode, reason = decide_checkpointing(args, prepared.info, folder, dtype, batch)
    decisions.choose("Gradient checkpointing", mode, reason)
    resolved = copy.copy(args)
    resolved.gradient_checkpointing = mode
    return resolved


def decide_checkpointing(
    args: StageArguments, info: ModelInfo, folder: Path, dtype: torch.dtype, batch: Batch
) -> tuple[Mode, str]:
    """Return the mode for a run on this machine, and the reason. `dtype`: the compute dtype."""
    on_gpu = accelerator().is_gpu
    sharding = sharding_of(args, accelerator().count)
    free = free_memory() // (1 if on_gpu else sharding.ranks)  # processes on CPUs share the machine's
    limit = free * (GPU_SHARE if on_gpu else CPU_SHARE)
    if surely_fits(read_json(folder / "config.json"), batch, limit):
        return "none", f"the run needs far less than the {gib(free)} of free memory"
    estimator = Estimator(info, folder, dtype, on_gpu=on_gpu)
    try:
        mode, total = least_checkpointing(args, lambda one: estimator.estimate(one, batch, sharding).total, limit)
    except (LlmtuneError, RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError) as err:
        reason = one_line(err, 120)
        return "none", (
            f"the memory of this model cannot be estimated ({reason}); if it does not suffice, use "
            "--gradient_checkpointing full"
        )
    if mode == "none":
        return mode, f"the run needs about {gib(total)} of {gib(free)} of free memory"
    less = "memory may not suffice even so" if total > limit else "with less recomputation, it does not fit"
    return mode, (
        f"the run then needs about {gib(total)} of {gib(free)} of free memory; {less}. "
        "`llmtune plan` with the same flags shows alternatives"
    )


def least_checkpointing(
    args: StageArguments, total_of: Callable[[StageArguments], int], limit: float
) -> tuple[Mode, int]:
    """Return the first of none, selective and full whose total is within `limit`, else full; and that total."""
    mode, total = MODES[0], 0
    for mode in MODES:
        tried = copy.copy(args)
        tried.gradient_checkpointing = mode
        total = total_of(tried)
        if total <= limit:
            break
    return mode, total


def free_memory() -> int:
    """Free bytes of this process's GPU, else of the machine's memory."""
    return accelerator().free_memory()


def used_memory() -> int:
    """Bytes that this process uses now: on its GPU, else of the machine's memory."""
    return accelerator().used_memory()


def surely_fits(config: dict[str, Any], batch: Batch, limit: float) -> bool:
    """Whether a generous upper bound lies within the limit: then tracing, which takes seconds, is not needed.

    A layer keeps 34 numbers per token and hidden unit in half precision (Korthikanti et al., arXiv 2205.05198, section
    4); assumed here are fp32, adapters and a mask per layer, and twice that.
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
