"""Frozen linear layers in fp8: both matmuls, of forward and of the inputs' gradient, multiply rounded numbers.

Each matmul takes factors that are contiguous along the dimension it sums over, with one scale along it. So a layer
keeps its weight twice, by rows and by columns, each with its own scales: 2 bytes per weight, as in bf16. Inputs and
gradients are rounded as they come, with a scale per token, so that a token's numbers do not depend on those beside it
in a batch or pack. All are e4m3: of e5m2 gradients, the inputs' gradient is 5.7% off instead of 3.6% (llmtune-tiny).

torchao has no such layer: its Float8Linear casts the bf16 weight at every step, keeps the inputs and computes the
weight's gradient even where it is frozen; the float8 configs of torchao.quantization have no backward pass.

Letters: M rows (tokens), K inputs, N outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger
from llmtune.utils.system import need

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
TINY = 1e-30
"""Stands for the largest number of a row of zeros."""
MULTIPLE = 16
"""Sides of a weight that the kernels take are multiples of it."""
CPU_KERNEL = torch.__version__ >= "2.13"
"""Whether torch's CPU kernel takes a scale per row: that of 2.11 takes one per tensor."""
CAPABILITY = (8, 9)
"""Compute capability of the first NVIDIA GPUs with fp8, Ada's."""


def check_fp8() -> None:
    """Refuse a GPU without fp8, and warn on a CPU.

    Raises:
        UsageError: The GPU has no fp8. MissingPackageError: Triton is not installed.
    """
    found = accelerator()
    if not found.is_gpu:
        get_logger().warning("--fp8_base true is slower than --dtype bf16 here: a CPU has no fp8 arithmetic.")
        return
    capability = found.capability
    if capability is None or capability < CAPABILITY:
        what = "" if capability is None else f", of compute capability {capability[0]}.{capability[1]}"
        raise UsageError(
            f"--fp8_base true needs an NVIDIA GPU of compute capability 8.9 or higher (Ada, Hopper, Blackwell), and "
            f"this is {found.name}{what}. Remove the flag: the base is then in bf16."
        )
    need("triton", "--fp8_base true")


class Fp8Linear(nn.Linear):
    """A frozen linear layer, made by `to_fp8`; it returns autocast's dtype, or that of its inputs.

    The numbers are kept as integers, since `.to(dtype)` would round them, gloo does not send fp8, and PEFT would take
    their dtype for that of adapters.

    Attributes:
        weight: uint8 [N, K], e4m3.
        weight_scale: int32 [N, 1], fp32.
        weight_t, weight_t_scale: uint8 [K, N], int32 [K, 1]: the transposed weight.
    """

    weight_scale: Tensor
    weight_t: Tensor
    weight_t_scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        rows = inputs.reshape(-1, self.in_features)
        found: Any = _Matmul.apply(rows, self.weight, self.weight_scale, self.weight_t, self.weight_t_scale)
        found = found.to(dtype).view(*inputs.shape[:-1], self.out_features)
        return found if self.bias is None else found + self.bias.to(dtype)


def has_fp8(model: nn.Module) -> bool:
    return any(isinstance(module, Fp8Linear) for module in model.modules())


def fits_fp8(layer: nn.Linear) -> bool:
    """Whether the kernels take the sides of its weight."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0


def to_fp8(layer: nn.Linear) -> None:
    """Make a frozen linear layer an Fp8Linear, in place. Its bias stays as it is."""
    weight = layer.weight.detach()
    (by_row, scale), (by_column, scale_t) = round_rows(weight), round_rows(weight.t())
    layer.__class__ = Fp8Linear
    if "_old_forward" in vars(layer):  # what accelerate's hooks call, where --device_map spreads the layers
        vars(layer)["_old_forward"] = MethodType(Fp8Linear.forward, layer)
    layer.weight = nn.Parameter(by_row.view(torch.uint8), requires_grad=False)
    for name, value in (
        ("weight_scale", scale.view(torch.int32)),
        ("weight_t", by_column.view(torch.uint8)),
        ("weight_t_scale", scale_t.view(torch.int32)),
    ):
        layer.register_buffer(name, value, persistent=False)


class _Matmul(torch.autograd.Function):
    """[M, K] times the transposed weight -> [M, N] in bf16; keeps no inputs for backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor, weight_t: Tensor, scale_t: Tensor) -> Tensor:
        ctx.save_for_backward(weight_t, scale_t)
        ctx.dtype = inputs.dtype
        return matmul_fp8(inputs, weight, scale, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight_t, scale_t = ctx.saved_tensors
        # Fast accumulation sums in about 14 bits: as in torchao's default, gradients are summed in fp32.
        found = matmul_fp8(grads[0], weight_t, scale_t, use_fast_accum=False)
        return found.to(ctx.dtype), None, None, None, None


def matmul_fp8(rows: Tensor, weight: Tensor, scale: Tensor, *, use_fast_accum: bool) -> Tensor:
    """Return [M, K] times the transpose of [N, K], in bf16.

    Args:
        weight, scale: uint8 and int32, as Fp8Linear keeps them.
    """
    columns, scale_of_columns = weight.view(E4M3).t(), scale.view(torch.float32).t()
    # On a CPU, the kernel multiplies in fp32, which autocast would turn into bf16.
    with torch.autocast(rows.device.type, enabled=False):
        rounded, scale_of_rows = _rounding(rows)(rows)
        if rows.device.type == "cpu" and not CPU_KERNEL:
            return (rounded.float() @ columns.float() * scale_of_rows * scale_of_columns).bfloat16()
        return torch._scaled_mm(
            rounded,
            columns,
            scale_a=scale_of_rows,
            scale_b=scale_of_columns,
            out_dtype=torch.bfloat16,
            use_fast_accum=use_fast_accum,
        )


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round [M, K] to e4m3, contiguous, with scales [M, 1] in fp32: `rounded * scale` is about `rows`.

    The scale of a row takes its largest number to that of e4m3. NaN and infinity make the row's product NaN.
    """
    largest = torch.linalg.vector_norm(rows, math.inf, -1, keepdim=True, dtype=torch.float32)
    scale = largest.clamp_min(TINY) / LARGEST
    return (rows / scale).to(E4M3).contiguous(), scale


def _rounding(rows: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """On a GPU, `round_rows` as one kernel: one by one, its operations move 20 bytes per number instead of 3."""
    compiles = rows.device.type != "cpu" and not torch.compiler.is_compiling()
    return _compiled() if compiles else round_rows


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(round_rows, dynamic=True)
