"""Changes of flags that reduce the memory of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtune.arguments.optimizers import OFFLOADABLE, ROUNDING, in_bf16
from llmtune.planning.memory import DEFAULT_OPTIMIZER

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


RANKS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Change:
    """`text`: the flags. `values`: the arguments they set. `kind`: only one change per kind is used."""

    text: str
    values: dict[str, Any]
    kind: str


def possible_changes(args: StageArguments, *, bf16: bool) -> Iterator[Change]:
    """Yield the changes that may reduce the memory of a run, smallest change first.

    Args:
        bf16: Whether the run computes in bf16.
    """
    if args.gradient_checkpointing == "none":
        yield _flag("gradient_checkpointing", "selective")
    if args.gradient_checkpointing in ("none", "selective"):
        yield _flag("gradient_checkpointing", "full")
    yield from _batches(args)
    yield from _rollout_batches(args)
    if args.batch_size > 1 and not args.concatenates and not args.may_have_vision:
        yield _flag("padding_free", "true")
    full = args.sft_type == "full"
    if not full and not args.quantization_bit and args.lora_init == "default" and not args.use_dora:
        yield _quantized(args)
    if full:
        yield from _optimizers(args, bf16=bf16)
        lora = {"sft_type": "lora", "freeze_layers": 0, "freeze_parameters": [], "only_save_model": False}
        yield Change("--sft_type lora", lora, "sft_type")
        yield Change("--sft_type lora --quantization_bit 4", lora | {"quantization_bit": 4}, "sft_type")
    length = args.max_length if args.max_length > 0 else 4096
    while length >= 512 * 2:
        length //= 2
        yield _flag("max_length", length)
    yield from _sequence_parallel(args)
    if getattr(args, "nproc", 0) == 1 and not args.quantization_bit and not args.fp8_base:
        for ranks in RANKS:
            yield Change(
                f"--nproc {ranks} --deepspeed_config_path zero3",
                {"nproc": ranks, "deepspeed_config_path": "zero3"},
                "ranks",
            )


def _sequence_parallel(args: StageArguments) -> Iterator[Change]:
    """Groups of the processes that there are: the steps hold as many samples."""
    nproc, size = int(getattr(args, "nproc", 1)), args.sequence_parallel_size
    if args.why_unshared():
        return
    for more in (count for count in RANKS if count > size and nproc % count == 0):
        steps = args.gradient_accumulation_steps * more // size
        values = {"sequence_parallel_size": more, "gradient_accumulation_steps": steps}
        text = f"--sequence_parallel_size {more} --gradient_accumulation_steps {steps}"
        yield Change(text, values, "sequence_parallel_size")


def _quantized(args: StageArguments) -> Change:
    if not args.fp8_base:
        return _flag("quantization_bit", 4)
    values = {"quantization_bit": 4, "fp8_base": False}
    return Change("--quantization_bit 4 --fp8_base false", values, "quantization_bit")


def _optimizers(args: StageArguments, *, bf16: bool) -> Iterator[Change]:
    """Smaller states, then smaller weights and gradients too, then no states on the GPU."""
    given = args.optim if "optim" in args.given else None
    if args.optim_offload or not str(args.optim or DEFAULT_OPTIMIZER).startswith("adamw_torch"):
        return
    pure, sharded = in_bf16(args), args.fsdp or args.deepspeed_config_path
    bf16 = bf16 and not sharded
    if not pure:
        yield _flag("optim", "adamw_bnb_8bit")
    if not pure and bf16:
        flags = "--pure_bf16 true" + ("" if given is None else f" --optim {ROUNDING[0]}")
        yield Change(flags, {"pure_bf16": True, "optim": ROUNDING[0]}, "optim")
    if not pure:
        yield _flag("optim", "paged_adamw_8bit")
    if getattr(args, "nproc", 1) == 1 and not sharded and given in (None, *OFFLOADABLE):
        values: dict[str, Any] = {"optim_offload": True, "optim": given}
        yield Change("--optim_offload true", values, "optim")
        if bf16 and not pure:
            yield Change("--pure_bf16 true --optim_offload true", values | {"pure_bf16": True}, "optim")


def _batches(args: StageArguments) -> Iterator[Change]:
    size = args.batch_size
    while size > 1:
        size //= 2
        steps = args.gradient_accumulation_steps * args.batch_size // size
        values = {"batch_size": size, "gradient_accumulation_steps": steps}
        yield Change(f"--batch_size {size} --gradient_accumulation_steps {steps}", values, "batch_size")


def _rollout_batches(args: StageArguments) -> Iterator[Change]:
    size = getattr(args, "rollout_batch_size", 1)
    while size > 1:
        size //= 2
        yield _flag("rollout_batch_size", size)


def _flag(name: str, value: Any) -> Change:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Change(f"--{name} {text}", {name: value}, name)
