"""`--optim` on this machine: what its device lacks, and the fields of TrainingArguments that it sets."""

from __future__ import annotations

from typing import Any

from llmtune.arguments.optimizers import OPTIMIZERS, ROUNDING, is_low_rank, offloads
from llmtune.arguments.stage import StageArguments
from llmtune.errors import UsageError
from llmtune.models.layers import default_optimizer
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need


def check_optimizer_device(args: StageArguments) -> None:
    """Refuse an optimizer that this device does not have; warn of what has no effect here.

    Raises:
        UsageError: It needs another device. MissingPackageError: Triton, by which torchao's are compiled.
    """
    found, name = accelerator(), args.optim
    if offloads(args) and not found.is_gpu:
        get_logger().warning("--optim_offload saves no memory in this run: there is no GPU to offload from.")
    if name is None:
        return
    one = OPTIMIZERS[name]
    if one.needs_gpu and not found.is_cuda:
        raise UsageError(f"--optim {name} needs an NVIDIA or AMD GPU: {one.needs_gpu}.")
    if name in ROUNDING and found.is_gpu:
        if not found.needs_triton:
            raise UsageError(f"--optim {name} is compiled by Triton, which {found.name} lacks. Use another --optim.")
        need("triton", f"--optim {name}")
    if "paged" in name and not found.is_gpu:
        get_logger().warning("--optim %s does not page on a CPU: it works without paging.", name)
    if one.in_backward and args.max_grad_norm:
        text = "--max_grad_norm has no effect in this run: --optim %s updates the weights within the backward pass."
        get_logger().warning(text, name)


def optimizer_fields(args: StageArguments) -> dict[str, Any]:
    """Fields of TrainingArguments, beside which those of `--train_args` win."""
    name = args.optim or default_optimizer()
    fields: dict[str, Any] = {"optim": default_optimizer() if name == "muon" else name}
    if is_low_rank(name):
        fields["optim_target_modules"] = "all-linear"
    return fields
