"""Flags that would make a run fit, smallest change first: each is checked by a new estimate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
from llmtune.planning.memory import DEFAULT_OPTIMIZER

MOST_SINGLE = 3
"""Number of single-change suggestions to show."""

WORTH = 0.99
"""A change counts if it leaves less than this fraction of the memory."""

ROUNDS = 2
"""Rounds over all changes: one that does not help at first may help together with others."""

RANKS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Change:
    """`text`: the flags. `values`: the arguments they set. `kind`: only one change per kind is used."""

    text: str
    values: dict[str, Any]
    kind: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`text`: the flags to add or change. `total`: bytes per device with them."""

    text: str
    total: int


def suggest(args: StageArguments, total_of: Callable[[StageArguments], int], limit: float) -> list[Suggestion]:
    """Return flags that bring the peak memory per device below `limit`.

    Args:
        total_of: Estimates the total for other arguments.

    Returns:
        Single changes, the least invasive first; else one combination; empty if none is found.
    """
    start = total_of(args)
    changes = list(_changes(args))
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


def _changes(args: StageArguments) -> Iterator[Change]:
    if args.gradient_checkpointing == "none":
        yield _flag("gradient_checkpointing", "selective")
    if args.gradient_checkpointing in ("none", "selective"):
        yield _flag("gradient_checkpointing", "full")
    yield from _batches(args)
    if args.batch_size > 1 and not (args.padding_free or args.packing):
        yield _flag("padding_free", True)
    full = args.sft_type == "full"
    if not full and not args.quantization_bit and args.lora_init == "default" and not args.use_dora:
        yield _flag("quantization_bit", 4)
    if full:
        if (args.optim or DEFAULT_OPTIMIZER).startswith("adamw_torch"):
            yield _flag("optim", "adamw_bnb_8bit")
            yield _flag("optim", "paged_adamw_8bit")
        lora = {"sft_type": "lora", "freeze_layers": 0, "freeze_parameters": [], "only_save_model": False}
        yield Change("--sft_type lora", lora, "sft_type")
        yield Change("--sft_type lora --quantization_bit 4", lora | {"quantization_bit": 4}, "sft_type")
    length = args.max_length if args.max_length > 0 else 4096
    while length >= 512 * 2:
        length //= 2
        yield _flag("max_length", length)
    if getattr(args, "nproc", 0) == 1 and not args.quantization_bit:
        for ranks in RANKS:
            yield Change(
                f"--nproc {ranks} --deepspeed_config_path zero3",
                {"nproc": ranks, "deepspeed_config_path": "zero3"},
                "ranks",
            )


def _batches(args: StageArguments) -> Iterator[Change]:
    size = args.batch_size
    while size > 1:
        size //= 2
        steps = args.gradient_accumulation_steps * args.batch_size // size
        values = {"batch_size": size, "gradient_accumulation_steps": steps}
        yield Change(f"--batch_size {size} --gradient_accumulation_steps {steps}", values, "batch_size")


def _flag(name: str, value: Any) -> Change:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Change(f"--{name} {text}", {name: value}, name)
