"""`llmtune plan`: the cost of a run, and whether it fits, without loading weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmtune.errors import HubError, LlmtuneError, ModelError, UsageError, one_line
from llmtune.models.devices import Gpu, find_gpus, gib, gpu_of_device
from llmtune.models.dtypes import dtype_name, resolve_dtype
from llmtune.models.info import MODEL_MAPPING
from llmtune.planning.auto import CPU_SHARE, free_memory, least_checkpointing
from llmtune.planning.changes import Change, possible_changes
from llmtune.planning.memory import Estimate, Estimator
from llmtune.planning.online import rows_at_a_time
from llmtune.planning.workload import SampleLengths, Workload, sample_lengths, sharding_of
from llmtune.run.resolved import Run, why_undivided
from llmtune.samples.prepare import prepare
from llmtune.utils.accelerator import accelerator
from llmtune.utils.files import read_json
from llmtune.utils.html import table
from llmtune.utils.logging import get_logger, quiet_libraries

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


USUAL_MFU = 0.4
"""MFU that well-tuned fine-tuning reaches."""


@dataclass(frozen=True)
class Plan:
    """Cost of a run.

    Attributes:
        args: With `auto` resolved.
        ranks, spread: Processes, and the devices that the layers of each are spread over.
        limit: Usable bytes of one device.
        suggestions: Flags that would help, if it does not fit.
        reference_tokens: Tokens that a reference model computes before the first step, where a loss needs one.
    """

    args: StageArguments
    dtype: str
    estimate: Estimate
    workload: Workload
    ranks: int
    spread: int
    limit: float
    device: str
    tflops: float
    suggestions: list[Suggestion]
    notes: list[str]
    reference_tokens: int = 0

    @property
    def fits(self) -> bool:
        return self.estimate.total <= self.limit

    @property
    def flops(self) -> float:
        work = self.workload
        return self.estimate.flops.of(work.computed, work.trainable, work.contexts)

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints kept at a time, plus one being written."""
        args, steps = self.args, self.workload.steps
        if args.save_strategy == "no":
            return 0
        kept = args.save_total_limit if args.save_total_limit > 0 else 1_000_000
        if steps is not None and args.save_strategy == "steps":
            kept = min(kept, max(-(-steps // int(args.save_steps or 1)), 1))
        return sum(self.estimate.saved) * (min(kept, 1000) + 1)

    def rows(self) -> dict[str, str]:
        """Return the plan as a table: name -> text."""
        one, work, args = self.estimate, self.workload, self.args
        size = f"{work.batch.size} x {work.batch.length:,} tokens"
        table = {
            "model": f"{args.display_name()}, {args.sft_type} fine-tuning, dtype {self.dtype}",
            "trainable parameters": f"{one.trainable:,} of {one.parameters:,} "
            f"({one.trainable / max(one.parameters, 1):.2%})",
            "largest batch": f"{size} per device{self._share()}, gradient checkpointing {args.gradient_checkpointing}",
            "steps": "unknown without the rows" if work.steps is None else f"{work.steps:,}",
        }
        if work.steps is not None:
            table["tokens"] = f"{work.useful:,}; {work.computed:,} with padding, {work.trainable:,} trainable"
            table["FLOPs"] = f"{self.flops:.3g}{self._duration()}"
        if getattr(args, "needs_reference", False) and args.KIND != "prompts":
            whose = getattr(args, "reference", None) or "the model itself, before the first step"
            tokens = f"{self.reference_tokens:,} tokens forward, once" if self.reference_tokens else "all rows, once"
            table["reference pass"] = f"{tokens}, by {whose}; kept for later runs, and never a second model in memory"
        table["checkpoint size"] = gib(sum(one.saved)) + (
            "" if args.only_save_model else f", {gib(one.saved[1])} of it optimizer state"
        )
        table["disk space"] = f"{gib(self.disk)} for the checkpoints kept, plus one being written"
        table |= {
            self._whose_memory(): "",
            "  weights": gib(one.weights),
            "  gradients": gib(one.gradients),
            "  optimizer": gib(one.optimizer),
            "  activations": gib(one.activations),
            "  scores and loss" if args.SCORES else "  logits and loss": gib(one.logits),
            **({"  rollouts": self._rollouts()} if one.rollouts else {}),
            **{f"  {name}": gib(size) for name, size in one.roles.items()},
            "  total": f"{gib(one.total)} of {gib(self.limit)} usable on {self.device}",
        }
        return table | {"fits": "yes" if self.fits else "NO"}

    def to_json(self) -> dict[str, Any]:
        """The plan for programs: sizes in bytes, `hours` as far as the device's speed is known."""
        one, work = self.estimate, self.workload
        hours = self.flops / (self.tflops * 1e12 * USUAL_MFU * self.ranks) / 3600 if self.tflops else None
        memory = {name: getattr(one, name) for name in ("weights", "gradients", "optimizer", "activations", "logits")}
        return {
            "fits": self.fits,
            "device": self.device,
            "usable": int(self.limit),
            "total": int(one.total),
            "memory": {name: int(size) for name, size in (memory | {"rollouts": one.rollouts, **one.roles}).items()},
            "steps": work.steps,
            "tokens": {"useful": work.useful, "computed": work.computed, "trainable": work.trainable},
            "hours": hours,
            "disk": int(self.disk),
            "rows": self.rows(),
            "notes": self.notes,
            "suggestions": [{"flags": change.text, "total": int(change.total)} for change in self.suggestions],
        }

    def _repr_html_(self) -> str:
        """The plan in a notebook."""
        changes = {f"would fit: {change.text}": gib(change.total) for change in self.suggestions}
        notes = {f"note {number}": text for number, text in enumerate(self.notes, start=1)}
        return table({**self.rows(), **changes, **notes})

    def _share(self) -> str:
        parts = self.args.sequence_parallel_size
        return "" if parts == 1 else f", the part of one of {parts} processes"

    def _rollouts(self) -> str:
        args: Any = self.args
        cache = f"KV cache of {rows_at_a_time(args)} responses at a time"
        return f"{gib(self.estimate.rollouts)}, {cache}; not beside activations"

    def _whose_memory(self) -> str:
        if self.ranks * self.spread == 1:
            return "memory"
        which = "each" if self.spread == 1 else "the fullest"
        return f"memory of {which} of {self.ranks * self.spread} devices"

    def _duration(self) -> str:
        if not self.tflops:
            return ""
        hours = self.flops / (self.tflops * 1e12 * USUAL_MFU * self.ranks) / 3600
        text = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        return f", about {text} at {USUAL_MFU:.0%} MFU on {self.device}"


def plan(args: StageArguments, *, gpu: str | None = None) -> Plan:
    """Plan a run, without loading weights.

    Args:
        gpu: Memory or name of the GPU to plan for: `24GB`, `H100`, `2x24GB`. None: this machine's.

    Raises:
        LlmtuneError: As `make_plan`, or the GPU is unknown.
    """
    number, found = (1, None) if gpu is None else find_gpus(gpu)
    quiet_libraries()
    return make_plan(args, found, number)


def make_plan(args: StageArguments, gpu: Gpu | None = None, gpus: int = 1) -> Plan:
    """Plan a run.

    Args:
        gpu: The GPU to plan for. None: this machine's, or its memory without a GPU.
        gpus: GPUs per machine; --device_map divides them among its processes.

    Raises:
        LlmtuneError: As `sft` would raise before loading weights.
        UsageError: The model's code depends on tensor values and cannot be traced; --device_map has one device.
    """
    run = Run.resolve(args)
    args, info, folder = run.args, run.info, run.args.folder()
    notes: list[str] = []
    rows = _rows(args, folder, notes)
    limit, device, tflops = _device(gpu)
    dtype = _dtype(args, gpu)
    estimator = Estimator(info, folder, dtype, on_gpu=gpu is not None or accelerator().is_gpu)

    per_machine = accelerator().count if gpu is None else gpus

    def total_of(one: StageArguments) -> int:
        if why_undivided(one, folder):
            return sys.maxsize
        sharding = sharding_of(one, per_machine)
        return estimator.estimate(one, Workload.of(one, rows, sharding.ranks).batch, sharding).total

    sharding = sharding_of(args, per_machine)
    if args.device_map and sharding.spread == 1:
        raise UsageError(
            f"--device_map {args.device_map} spreads the layers of a process over several GPUs, but each has "
            f"{per_machine // sharding.ranks or 'none'}. Give the number of GPUs, e.g. --gpu {2 * sharding.ranks}x24GB."
        )
    work = Workload.of(args, rows, sharding.ranks)
    try:
        if args.gradient_checkpointing == "auto":
            args = copy.copy(args)
            mode, _ = least_checkpointing(args, total_of, limit)
            args.gradient_checkpointing = mode
            notes.append(f"--gradient_checkpointing auto resolves to {mode}.")
        estimate = estimator.estimate(args, work.batch, sharding)
        bf16 = dtype is torch.bfloat16
        suggestions = suggest(args, total_of, limit, bf16=bf16) if estimate.total > limit else []
    except LlmtuneError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError) as err:
        reason = one_line(err, 200)
        raise UsageError(
            f"The code of {args.display_name()} cannot be traced without data, so its memory is unknown: {reason}."
        ) from err
    if gpus > sharding.ranks * sharding.spread:
        notes.append(f"Some of the {gpus} GPUs are idle: --nproc {gpus} or --device_map auto uses all of them.")
    if args.fp8_base:
        notes.append("--fp8_base keeps two fp8 copies of each weight, for forward and backward: as many bytes as bf16.")
    if args.device_map == "sequential":
        notes.append("--device_map sequential fills the first GPU first; these figures are for auto.")
    if read_json(folder / "config.json").get("vision_config"):
        notes.append("Activations of images are not counted: these figures are for text only.")
    shared = (sharding.ranks, sharding.spread)
    reference = 0 if rows is None else int(rows.lengths.sum())
    return Plan(args, dtype_name(dtype), estimate, work, *shared, limit, device, tflops, suggestions, notes, reference)


def _rows(args: StageArguments, folder: Path, notes: list[str]) -> SampleLengths | None:
    if not any(folder.glob("*tokenizer*")) and args.tokenizer_id_or_path is None:
        notes.append(f"{folder} has no tokenizer, so each sample is assumed to have --max_length tokens.")
        return None
    try:
        return sample_lengths(prepare(args))
    except (HubError, ModelError) as err:
        get_logger().warning("The rows are not available: %s", err)
        notes.append("The rows are not available, so each sample is assumed to have --max_length tokens.")
        return None


def _device(gpu: Gpu | None) -> tuple[float, str, float]:
    """Usable bytes, name and TFLOP/s (0: unknown) of the device."""
    if gpu is not None:
        return gpu.usable, f"a {gpu.name}", gpu.tflops
    if accelerator().is_gpu:
        name = accelerator().name
        known: Any = gpu_of_device(name)
        return free_memory() * (1 - 0.04), f"this machine's {name}", known.tflops if known else 0.0
    return free_memory() * CPU_SHARE, "this machine (no GPU)", 0.0


def _dtype(args: StageArguments, gpu: Gpu | None) -> torch.dtype:
    """Return the dtype that `resolve_dtype` would choose on the planned machine."""
    info = MODEL_MAPPING[str(args.model_type)]
    if gpu is not None and args.dtype is None and info.torch_dtype is None:
        return torch.bfloat16 if gpu.bf16 else torch.float16
    return resolve_dtype(info, args.dtype)[0]


# Flags that would make a run fit, smallest change first: each is checked by a new estimate


MOST_SINGLE = 3
"""Number of single-change suggestions to show."""

WORTH = 0.99
"""A change counts if it leaves less than this fraction of the memory."""

ROUNDS = 2
"""Rounds over all changes: one that does not help at first may help together with others."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`text`: the flags to add or change. `total`: bytes per device with them."""

    text: str
    total: int


def suggest(
    args: StageArguments, total_of: Callable[[StageArguments], int], limit: float, *, bf16: bool = True
) -> list[Suggestion]:
    """Return flags that bring the peak memory per device below `limit`.

    Args:
        total_of: Estimates the total for other arguments.
        bf16: Whether the run computes in bf16.

    Returns:
        Single changes, the least invasive first; else one combination; empty if none is found.
    """
    start = total_of(args)
    changes = list(possible_changes(args, bf16=bf16))
    tried = [(change, total_of(_with(args, [change]))) for change in changes]
    alone = [Suggestion(change.text, total) for change, total in tried if total <= limit]
    if alone:
        return alone[:MOST_SINGLE]
    chosen: list[Change] = []
    best = start
    for change in changes * ROUNDS:
        if change in chosen:
            continue
        attempt = [*(one for one in chosen if one.kind != change.kind), change]
        total = total_of(_with(args, attempt))
        if total < best * WORTH:
            chosen, best = attempt, total
        if best <= limit:
            return [_pruned(args, chosen, total_of, limit)]
    return []


def _pruned(
    args: StageArguments, chosen: list[Change], total_of: Callable[[StageArguments], int], limit: float
) -> Suggestion:
    """The suggestion without changes that are not needed."""
    for change in list(chosen):
        fewer = [one for one in chosen if one is not change]
        if fewer and total_of(_with(args, fewer)) <= limit:
            chosen = fewer
    return Suggestion(" ".join(change.text for change in chosen), total_of(_with(args, chosen)))


def _with(args: StageArguments, changes: list[Change]) -> StageArguments:
    changed = copy.copy(args)
    for change in changes:
        for name, value in change.values.items():
            setattr(changed, name, value)
    return changed
