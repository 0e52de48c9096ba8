"""A frozen layer in fp8: how far it is from the layer it was, and what the kernels of GPUs ask of its factors."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from llmtune.errors import MissingPackageError, UsageError
from llmtune.models import fp8
from llmtune.models.fp8 import check_fp8, round_rows, to_fp8
from llmtune.models.layers import selective_contexts
from tests.accelerated import pretend

BF16 = 2**-8
"""Relative distance of a number to the nearest in bf16, at most."""
E4M3 = 2**-4


def layers(*, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A linear layer of rows and columns of very different sizes, and the same in fp8."""
    torch.manual_seed(0)
    plain = nn.Linear(96, 64, bias=bias).requires_grad_(False)
    plain.weight *= torch.logspace(-2, 2, 64)[:, None] * torch.logspace(-1, 1, 96)
    ours = nn.Linear(96, 64, bias=bias).requires_grad_(False)
    ours.load_state_dict(plain.state_dict())
    to_fp8(ours)
    return plain, ours


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    """[2, 20, 96]: tokens of very different sizes, with an outlying channel."""
    found = torch.randn(2, 20, 96) * torch.logspace(-3, 3, 20)[:, None]
    found[..., 5] *= 50
    return found.to(dtype)


def both(layer: nn.Linear, inputs: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Output and inputs' gradient."""
    inputs = inputs.detach().requires_grad_()
    output = layer(inputs)
    output.backward(grad.to(output.dtype))
    assert inputs.grad is not None
    return output.detach(), inputs.grad


def rounded(rows: Tensor) -> Tensor:
    """Each row as e4m3 has it once its largest number is 448."""
    scale = 448 / rows.abs().amax(-1, keepdim=True)
    return (rows * scale).to(torch.float8_e4m3fn).float() / scale


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """Relative distance, token by token."""
    return (ours.float() - theirs).norm(dim=-1) / theirs.norm(dim=-1)


@pytest.mark.parametrize("way", ["fp32", "bf16", "autocast", "transposed"])
def test_output_and_gradient_are_off_by_the_rounding_of_e4m3_alone(way):
    plain, ours = layers(bias=False)
    inputs = tokens(torch.bfloat16 if way == "bf16" else torch.float32)
    grad = torch.randn(2, 20, 64) * torch.logspace(3, -6, 20)[:, None]
    grad = grad.bfloat16().float()  # as it comes to a matmul in bf16
    if way == "transposed":
        inputs, grad = (one.transpose(0, 1).contiguous().transpose(0, 1) for one in (inputs, grad))
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        output, of_inputs = both(ours, inputs, grad)
    assert output.dtype is (torch.bfloat16 if way in ("bf16", "autocast") else torch.float32)
    assert of_inputs.dtype is inputs.dtype
    inputs = inputs.float()
    exact, exact_grad = both(plain, inputs, grad)
    for found, wanted in ((output, exact), (of_inputs, exact_grad)):
        assert 0.01 < apart(found, wanted).mean() < 0.045, "two factors, each rounded by 2.6% on average"
    products = rounded(inputs) @ rounded(plain.weight).t(), rounded(grad) @ rounded(plain.weight.t()).t()
    for found, wanted in zip((output, of_inputs), products, strict=True):
        assert apart(found, wanted).mean() < 0.6 * BF16, "the rounding of the result alone"


def test_the_numbers_of_a_token_do_not_depend_on_others():
    _, ours = layers()
    inputs, grad = tokens(), torch.randn(2, 20, 64)
    together = both(ours, inputs, grad)
    alone = both(ours, inputs[:1, 3:5], grad[:1, 3:5])
    assert all(torch.equal(one[:1, 3:5], other) for one, other in zip(together, alone, strict=True))


def test_every_row_keeps_its_largest_number():
    rows = torch.randn(9, 32) * torch.logspace(-25, 25, 9)[:, None]
    found, scale = round_rows(rows)
    assert (found.float().abs().amax(-1) == 448).all()
    torch.testing.assert_close((found.float() * scale).abs().amax(-1), rows.abs().amax(-1))
    assert (((found.float() * scale) - rows).abs() <= rows.abs() * E4M3 + scale * 2**-10).all()
    assert round_rows(rows.t())[0].is_contiguous(), "the kernels take rows"


def test_zeros_stay_and_nan_and_infinity_are_not_hidden():
    _, ours = layers(bias=False)
    inputs = torch.zeros(4, 96)
    inputs[1, 7], inputs[2, 7] = math.nan, math.inf
    assert ours(inputs).isfinite().all(-1).tolist() == [True, False, False, True]
    assert (ours(inputs)[[0, 3]] == 0).all()


def test_backward_keeps_the_transposed_weight_alone():
    _, ours = layers()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        ours(tokens(torch.bfloat16).requires_grad_())
    assert {one.data_ptr() for one in kept} == {ours.weight_t.data_ptr(), ours.weight_t_scale.data_ptr()}
    assert sum(one.nbytes for one in (ours.weight, ours.weight_t)) == 2 * 96 * 64


def test_casting_the_model_leaves_the_numbers_alone():
    _, ours = layers(bias=False)
    inputs = tokens(torch.bfloat16)
    before = ours(inputs)
    assert torch.equal(ours.bfloat16().half()(inputs), before)
    assert ours.state_dict().keys() == {"weight"}


def test_hooks_of_a_device_map_call_it():
    plain, ours = layers()
    add_hook_to_module(plain, AlignDevicesHook("cpu"))
    to_fp8(plain)
    inputs = tokens()
    assert torch.equal(plain(inputs), ours(inputs))


def test_a_bias_is_added_unrounded_and_can_be_trained():
    plain, ours = layers()
    torch.testing.assert_close(ours(torch.zeros(3, 96)), plain.bias.expand(3, 64), atol=0, rtol=0)
    grad = torch.randn(2, 20, 64)
    for layer in (plain, ours):
        layer.bias.requires_grad_()
        both(layer, tokens(), grad)
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


MATMUL = torch.ops.aten._scaled_mm.default


class Matmuls(TorchDispatchMode):
    """Counts fp8 matmuls, and lets torch check their factors as on a GPU: as fake CUDA tensors of the same layout."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is MATMUL:
            self.count += 1
            with FakeTensorMode():
                func(*(self.on_gpu(one) for one in args), **{name: self.on_gpu(one) for name, one in kwargs.items()})
        return func(*args, **(kwargs or {}))

    @staticmethod
    def on_gpu(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="cuda")


needs_the_cpu_kernel = pytest.mark.skipif(not fp8.CPU_KERNEL, reason="torch has the kernel on a CPU as of 2.13")


@needs_the_cpu_kernel
@pytest.mark.parametrize("length", [20, 1])
def test_the_factors_have_the_layout_that_gpus_take(length):
    _, ours = layers()
    inputs = tokens(torch.bfloat16)[:, :length]
    grad = torch.randn(2, length, 64)
    inputs, grad = (one.permute(2, 1, 0).contiguous().permute(2, 1, 0) for one in (inputs, grad))
    with Matmuls() as matmuls:
        both(ours, inputs, grad)
        assert matmuls.count == 2
        rows, scale = round_rows(inputs.reshape(-1, 96))
        columns = ours.weight_t.view(torch.float8_e4m3fn)
        with pytest.raises(RuntimeError, match="col_major"):
            torch._scaled_mm(rows, columns, scale_a=scale, scale_b=ours.weight_scale.view(torch.float32).t())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_of_a_gpu_compute_what_the_cpu_does():
    _, ours = layers(bias=False)
    inputs, grad = tokens(torch.bfloat16), torch.randn(2, 20, 64).bfloat16()
    wanted = both(ours, inputs, grad)
    found = both(ours.to("cuda"), inputs.cuda(), grad.cuda())
    for one, other in zip(found, wanted, strict=True):  # a number at the edge may be rounded to the other side
        assert apart(one.cpu(), other.float()).mean() < 4 * BF16


@needs_the_cpu_kernel
def test_a_cpu_without_the_kernel_computes_the_same(monkeypatch):
    _, ours = layers()
    inputs, grad = tokens(torch.bfloat16), torch.randn(2, 20, 64).bfloat16()
    found = {}
    for has in (True, False):
        monkeypatch.setattr(fp8, "CPU_KERNEL", has)
        with Matmuls() as matmuls:
            found[has] = both(ours, inputs, grad)
        assert matmuls.count == (2 if has else 0)
    assert all(torch.equal(*pair) for pair in zip(found[True], found[False], strict=True))


@needs_the_cpu_kernel
def test_selective_checkpointing_keeps_its_matmuls():
    _, ours = layers()
    inputs = tokens(torch.bfloat16).requires_grad_()
    counts = []
    for options in ({}, {"context_fn": selective_contexts}):
        with Matmuls() as matmuls:
            checkpoint(lambda x: ours(x * 2).relu(), inputs, use_reentrant=False, **options).sum().backward()
        counts.append(matmuls.count)
    assert counts == [3, 2], "forward and backward; in full, forward again"


def test_a_gpu_without_fp8_is_refused(monkeypatch, capfd):
    pretend(monkeypatch, "cuda", capability=(8, 6))
    with pytest.raises(UsageError, match=r"8\.9 or higher.*CUDA 9, of compute capability 8\.6\. Remove the flag"):
        check_fp8()
    pretend(monkeypatch, "xpu")
    with pytest.raises(UsageError, match=r"this is XPU 9\. Remove"):
        check_fp8()
    pretend(monkeypatch, "cuda", capability=(9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(UsageError, match=r"NVIDIA"):
        check_fp8()
    monkeypatch.setattr(torch.version, "hip", None)
    for capability in ((8, 9), (9, 0), (12, 0)):
        pretend(monkeypatch, "cuda", capability=capability)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        check_fp8()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingPackageError, match="--fp8_base true needs triton"):
            check_fp8()
    assert capfd.readouterr().err == ""
    pretend(monkeypatch, "cpu")
    check_fp8()
    assert "slower than --dtype bf16" in capfd.readouterr().err
