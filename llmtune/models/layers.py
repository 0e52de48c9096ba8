"""How layers are run: kernels other than attention, torch.compile, activation checkpointing; and which are active."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.run.log import Decisions


LIGER_SETTINGS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""The loss is ours: Liger's would compute logits at every position, or be bypassed."""


def check_kernels(args: StageArguments) -> None:
    """Refuse kernels that this machine cannot run.

    Raises:
        UsageError: A GPU or a compiler is missing. MissingPackageError: A package is.
    """
    found = accelerator()
    for asked, flag, package in (
        (args.use_liger, "--use_liger", "liger_kernel"),
        (args.use_kernels, "--use_kernels", "kernels"),
    ):
        if asked and not found.is_gpu:
            raise UsageError(f"{flag} true needs a GPU. Remove it: on a CPU, torch's kernels are used.")
        if asked:
            need(package, f"{flag} true", extra=flag.rpartition("_")[2], name=package.replace("_", "-"))
    if args.torch_compile and found.needs_triton:
        need("triton", "--torch_compile true")
    if args.torch_compile and not found.is_gpu and not any(map(shutil.which, _compilers())):
        raise UsageError("--torch_compile true needs a C++ compiler on a CPU: install g++, or remove the flag.")


def default_optimizer() -> str:
    """Fused AdamW on GPUs that have it, else plain AdamW.

    The fused step is faster on a CPU too (0.29 against 1.43 ms for LoRA's sizes, 2 cores, torch 2.13), but that is
    little of a step there, and its last digits differ (3e-8): `--optim adamw_torch_fused` selects it.
    """
    return "adamw_torch_fused" if accelerator().fuses_adamw else "adamw_torch"


def compile_layers(model: nn.Module, args: StageArguments, decisions: Decisions) -> None:
    """Compile each decoder layer separately; as they are alike, one compilation serves all.

    Loss, embeddings, the structure of the model and its checkpoints are unchanged.
    """
    if not args.torch_compile:
        return
    layers = [module for module in model.modules() if is_decoder_layer(module)]
    if not layers:
        get_logger().warning("--torch_compile has no effect: %s has no decoder layers.", type(model).__name__)
        return
    for layer in layers:
        layer.compile()
    decisions.fact("torch.compile", f"{len(layers)} decoder layers, compiled at the first step, which takes minutes")


@contextlib.contextmanager
def without_compiling(model: nn.Module) -> Iterator[None]:
    """Run compiled layers eagerly within the block: generation has a new length at every token."""
    # upstream: torch 2.13.0 torch/nn/modules/module.py: no public name says whether a module is compiled
    if any(module._compiled_call_impl is not None for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def note_kernels(model: nn.Module, args: StageArguments, decisions: Decisions) -> None:
    """Note which kernels the model's modules use; warn if a requested kernel is not used."""
    for asked, flag, package in (
        (args.use_liger, "--use_liger", "liger_kernel"),
        (args.use_kernels, "--use_kernels", "kernels"),
    ):
        if not asked:
            continue
        kinds = sorted({type(module).__name__ for module in model.modules() if _comes_from(module, package)})
        if kinds:
            decisions.fact(f"Kernels ({flag})", ", ".join(kinds))
        else:
            get_logger().warning("%s has no effect: it has no kernels for this model's layers.", flag)


def _comes_from(module: nn.Module, package: str) -> bool:
    """Whether a module's class or its replaced forward comes from that kernel package."""
    function = getattr(module.forward, "__func__", module.forward)
    places = (type(module).__module__, str(getattr(function, "__module__", "")))
    if package == "liger_kernel":
        return any(place.startswith(package) for place in places)
    ours = ("torch", "transformers", "peft", "llmtune", "accelerate", "functools")
    return not any(place.split(".")[0] in ours for place in places[1:])


def is_decoder_layer(module: nn.Module) -> bool:
    """Whether a module is a block of a decoder, or of a vision tower."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)


def _compilers() -> tuple[str, ...]:
    return (os.environ.get("CXX", "g++"), "g++", "clang++")


# Activation checkpointing


_ATEN = torch.ops.aten
_MATMULS = {_ATEN.mm: 0, _ATEN.bmm: 0, _ATEN.addmm: 1, _ATEN.baddbmm: 1, _ATEN._scaled_mm: 0}
"""Matmuls, and the index of their first factor among the arguments."""

CHEAP = 8
"""A matmul is recomputed if its output is this many times wider than its reduction dimension, as for LoRA's B."""


def checkpointing_kwargs(mode: str) -> dict[str, Any]:
    """Arguments of `torch.utils.checkpoint.checkpoint` for `selective` or `full`.

    Selective keeps the outputs of matmuls and attention and recomputes what costs bandwidth only: norms, activations,
    elementwise products, casts. Source of the idea: Korthikanti et al., arXiv 2205.05198; the mechanism is torch's own.
    """
    if mode == "full":
        return {"use_reentrant": False}
    return {"use_reentrant": False, "context_fn": selective_contexts}


def selective_contexts() -> Any:
    """Return the contexts; a named function, not a lambda, since TrainingArguments are saved with its name."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    first = _MATMULS.get(operation.overloadpacket)
    if first is None:
        keep = "attention" in operation.name()
    else:
        left, right = args[first], args[first + 1]
        keep = left.shape[-1] * CHEAP >= right.shape[-1]
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
