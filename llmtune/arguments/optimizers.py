"""Optimizers by name: which package each needs, and what it excludes. No torch."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from typing import Any

from llmtune.arguments.fields import Problems
from llmtune.errors import MissingPackageError, UsageError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer that `--optim` takes.

    Attributes:
        packages: Import names of what it needs.
        install: What pip installs for it.
        needs_gpu: Why it does not run on a CPU; "" if it does.
        full_only: Why adapters cannot use it; "" if they can.
        whole: It needs whole weights: no FSDP, no DeepSpeed.
        in_backward: It updates the weights within the backward pass.
        keeps_state: Whether a checkpoint has all that a resumed run needs.
        broken: Why it works nowhere; "" if it does.
    """

    packages: tuple[str, ...] = ()
    install: str = ""
    needs_gpu: str = ""
    full_only: str = ""
    whole: bool = False
    in_backward: bool = False
    keeps_state: bool = True
    broken: str = ""


_LOW_RANK = "it projects the gradients of whole matrices to a low rank, which those of adapters have already"
_PAGED = "bitsandbytes allocates its paged states by CUDA"
_TORCH = Optimizer()
_BNB = Optimizer(packages=("bitsandbytes",), install="'llmtune[quant]'")
_BNB_GPU = Optimizer(packages=("bitsandbytes",), install="'llmtune[quant]'", needs_gpu=_PAGED)
_TORCHAO = Optimizer(packages=("torchao",), install="'llmtune[torchao]'")
_FREE = Optimizer(packages=("schedulefree",), install="schedulefree")


def _low_rank(package: str, *more: str, layerwise: bool = False, needs_gpu: str = "", broken: str = "") -> Optimizer:
    packages = (package, *more)
    return Optimizer(
        packages=packages, install=" ".join(packages).replace("_", "-"), needs_gpu=needs_gpu, full_only=_LOW_RANK,
        whole=True, in_backward=layerwise, keeps_state=not layerwise, broken=broken,
    )  # fmt: skip


_GALORE_8BIT = "galore-torch creates its 8-bit states by CUDA"

OPTIMIZERS: dict[str, Optimizer] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"), _TORCH),
    "muon": Optimizer(
        full_only="it orthogonalises the updates of whole matrices, and an adapter's matrices are factors of one",
        whole=True,
    ),
    "adamw_torch_xla": Optimizer(packages=("torch_xla",), install="torch_xla"),
    "adamw_torch_npu_fused": Optimizer(packages=("torch_npu",), install="torch_npu"),
    "adamw_anyprecision": Optimizer(
        broken="its package, torchdistx, is archived and has no release for this torch. --pure_bf16 true does what it "
        "was for"
    ),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), _TORCHAO),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit"), _BNB),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_32bit", "paged_lion_8bit"), _BNB),
    **dict.fromkeys(("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), _BNB),
    **dict.fromkeys(("paged_ademamix_32bit", "paged_ademamix_8bit"), _BNB_GPU),
    "galore_adamw": _low_rank("galore_torch"),
    "galore_adamw_8bit": _low_rank("galore_torch", "bitsandbytes", needs_gpu=_GALORE_8BIT),
    "galore_adafactor": _low_rank("galore_torch"),
    "galore_adamw_layerwise": _low_rank("galore_torch", layerwise=True),
    "galore_adamw_8bit_layerwise": _low_rank("galore_torch", "bitsandbytes", layerwise=True, needs_gpu=_GALORE_8BIT),
    "galore_adafactor_layerwise": _low_rank(
        "galore_torch", layerwise=True,
        broken="transformers gives its Adafactor settings that contradict each other. Use galore_adafactor",
    ),
    "apollo_adamw": _low_rank("apollo_torch"),
    "apollo_adamw_layerwise": _low_rank("apollo_torch", layerwise=True),
    "lomo": Optimizer(packages=("lomo_optim",), install="lomo-optim", whole=True, in_backward=True),
    "adalomo": Optimizer(
        packages=("lomo_optim",), install="lomo-optim", whole=True, in_backward=True, keeps_state=False,
        needs_gpu="lomo-optim creates its states by CUDA",
    ),
    "grokadamw": Optimizer(packages=("grokadamw",), install="grokadamw"),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), _FREE),
    "stable_adamw": Optimizer(packages=("optimi",), install="torch-optimi"),
}  # fmt: skip
"""Optimizers that `--optim` takes: transformers' names, and muon, which is torch's own."""

ROUNDING = ("adamw_torch_8bit", "adamw_torch_4bit")
"""Optimizers that round bf16 weights stochastically."""
COMPENSATING = ("stable_adamw",)
"""Optimizers that keep what rounding bf16 weights loses, by Kahan summation."""
OFFLOADABLE = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that --optim_offload runs on the CPU."""


def is_low_rank(name: str | None) -> bool:
    return str(name).startswith(("galore", "apollo"))


def is_schedule_free(name: str | None) -> bool:
    return str(name).startswith("schedule_free")


def in_bf16(args: Any) -> bool:
    """Whether weights, gradients and optimizer states are in bf16 or less, without fp32 master weights."""
    return bool(args.pure_bf16 and args.sft_type == "full")


def offloads(args: Any) -> bool:
    """Whether the optimizer runs on the CPU."""
    return bool(args.optim_offload and args.sft_type == "full")


def check_optimizer(args: Any, problems: Problems) -> None:
    """Check what `--optim`, `--pure_bf16` and `--optim_offload` exclude."""
    name = args.optim
    if name is not None and name not in OPTIMIZERS:
        near = difflib.get_close_matches(name, OPTIMIZERS, n=2) or ["adamw_torch", "muon"]
        problems.need(False, f"--optim {name}: there is no such optimizer. Did you mean {' or '.join(near)}?")
        return
    if name is not None:
        _check_named(name, OPTIMIZERS[name], args, problems)
    if in_bf16(args):
        _check_pure_bf16(args, problems)
    if offloads(args):
        problems.need(
            name is None or name in OFFLOADABLE,
            f"--optim_offload true runs AdamW on the CPU: remove --optim {name}, which then need not save GPU memory.",
        )
        for flag in _sharding(args):
            other = "--fsdp_offload true" if flag == "--fsdp" else "--deepspeed_config_path zero2_offload"
            problems.need(False, f"--optim_offload true does not work with {flag}: use {other} instead.")


def _check_named(name: str, one: Optimizer, args: Any, problems: Problems) -> None:
    flag = f"--optim {name}"
    problems.need(not one.broken, f"{flag} does not work: {one.broken}.")
    problems.need(
        not one.full_only or args.sft_type == "full",
        f"{flag} needs --sft_type full: {one.full_only}. For adapters, leave --optim out.",
    )
    for sharding in _sharding(args) if one.whole else []:
        problems.need(False, f"{flag} needs whole weights, and {sharding} shards them: use DDP, by --nproc alone.")
    problems.need(
        not one.in_backward or args.gradient_accumulation_steps == 1,
        f"{flag} updates the weights within the backward pass, so it cannot accumulate gradients: use "
        "--gradient_accumulation_steps 1.",
    )
    problems.need(
        not one.in_backward or args.on_nan == "stop",
        f"{flag} updates the weights within the backward pass, so no step can be skipped: remove --on_nan skip.",
    )
    problems.need(
        one.keeps_state or args.resume_from_checkpoint is None,
        f"{flag} cannot resume: its states are not in a checkpoint. Start a new run from the checkpoint's weights, "
        "with --model_id_or_path.",
    )


def _check_pure_bf16(args: Any, problems: Problems) -> None:
    problems.need(
        args.dtype in (None, "bf16"), f"--pure_bf16 true keeps the weights in bf16: remove --dtype {args.dtype}."
    )
    takes = (*ROUNDING, *COMPENSATING)
    problems.need(
        args.optim in (None, *takes) or args.optim_offload,
        f"--pure_bf16 true with --optim {args.optim} would lose small updates, which round to nothing in bf16. Use "
        f"{', '.join(takes[:-1])} or {takes[-1]}; or --optim_offload true, which keeps fp32 master weights on the CPU.",
    )
    for flag in _sharding(args):
        problems.need(
            False,
            f"--pure_bf16 true does not work with {flag}, which keeps fp32 master weights of its own, sharded: remove "
            "one of the two.",
        )


def _sharding(args: Any) -> list[str]:
    given = (("--fsdp", args.fsdp), ("--deepspeed_config_path", args.deepspeed_config_path))
    return [flag for flag, value in given if value]


def fill_optimizer(args: Any) -> None:
    """Set what `--pure_bf16` and schedule-free optimizers imply, where nothing else was given."""
    if in_bf16(args):
        args.dtype = "bf16"
        if args.optim is None and not offloads(args):
            args.optim = ROUNDING[0]
    if is_schedule_free(args.optim) and "lr_scheduler_type" not in args.given:
        args.lr_scheduler_type = "constant_with_warmup"


def need_optimizer(args: Any, processes: int | None) -> None:
    """Refuse an optimizer whose package is missing, or that several processes cannot use. Nothing is imported.

    Args:
        processes: Of the run; None: not known yet.

    Raises:
        MissingPackageError: Named with the pip command. UsageError: Too many processes.
    """
    if args.optim is not None:
        one = OPTIMIZERS[args.optim]
        missing = [package for package in one.packages if importlib.util.find_spec(package) is None]
        if missing:
            raise MissingPackageError(
                f"--optim {args.optim} needs {', '.join(missing)}. Install it with: pip install {one.install}"
            )
        if one.in_backward and (processes or 1) > 1:
            raise UsageError(
                f"--optim {args.optim} updates the weights within the backward pass, before the gradients of "
                f"{processes} processes are averaged: use --nproc 1."
            )
    if offloads(args) and (processes or 1) > 1:
        raise UsageError(
            f"--optim_offload true would keep all states in CPU memory {processes} times, once per process: use "
            "--deepspeed_config_path zero2_offload, which shards them."
        )
