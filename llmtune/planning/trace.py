"""One forward and backward pass on fake tensors, and its peak memory.

The passes run module by module and operation by operation on tensors with shape, dtype and device but no data (torch's
FakeTensor). So whatever the model's class, its adapters, autocast and checkpointing keep for backward is counted, not
estimated. Workspaces inside kernels are not counted.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llmtune.models.activation_checkpointing import checkpointing_kwargs
from llmtune.models.supervised_loss import LogitMap, supervised_cross_entropy

CAUSAL = "llmtune_causal"
"""Name of sdpa attention without a mask."""


@dataclass(frozen=True, slots=True)
class Work:
    """Input and settings of one pass.

    Attributes:
        batch, length: B and T of `input_ids`, padding included.
        trainable: K, positions with a label.
        masked: Attention gets a mask of [B, 1, T, T]; else it is causal without a mask.
        accumulates: Gradients of earlier passes exist.
        checkpointing: none, selective or full.
        autocast: Dtype of autocast; None without.
    """

    batch: int
    length: int
    trainable: int
    masked: bool = False
    accumulates: bool = True
    checkpointing: str = "none"
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Passes:
    """Bytes besides weights and buffers: the peak, gradients included, and the part of the loss."""

    peak: int
    loss: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that operations create.

    `ignored`: existing tensors that do not count.
    """

    def __init__(self, ignored: Iterator[Tensor] | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._held: dict[int, Any] = {}
        for tensor in ignored or ():
            self._hold(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_iter(found):
            if isinstance(value, Tensor):
                self._hold(value)
        return found

    def add(self, num_bytes: int) -> None:
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def _hold(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        count = storage.nbytes() if size is None else size
        self._held[key] = weakref.ref(storage, lambda _: self._release(key, count))
        self.add(count)

    def _release(self, key: int, count: int) -> None:
        self._held.pop(key, None)
        self.live -= count


def trace_passes(model: Any, work: Work) -> Passes:
    """Trace a model on the meta device, which cannot be used afterwards."""
    # upstream: torch 2.13.0 torch/_subclasses/fake_tensor.py: fake tensors are not public
    from torch._subclasses.fake_tensor import FakeTensorMode

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if work.checkpointing != "none":
        options = checkpointing_kwargs(work.checkpointing) | {"preserve_rng_state": False}
        enable = getattr(inner, "_activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable(options)
    if not work.masked:
        _without_mask(inner)
    mode = FakeTensorMode()
    _with_fake_tensors(model, mode)
    live = LiveBytes(iter([*model.parameters(), *model.buffers()]))
    with mode:
        if work.accumulates:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    live.add(parameter.grad.numel() * parameter.grad.element_size())
                    live._hold(parameter.grad, 0)
        with live, _expert_matmuls_in_any_dtype():
            return _passes(inner, work, live)


def _passes(inner: Any, work: Work, live: LiveBytes) -> Passes:
    shape = (work.batch, work.length)
    given: dict[str, Any] = {"input_ids": torch.zeros(shape, dtype=torch.long), "use_cache": False}
    if work.masked:
        # transformers turns it into a mask of [B, 1, T, T], for packed sequences too.
        given["attention_mask"] = torch.ones(shape, dtype=torch.long)
    with _autocast(work.autocast):
        hidden = inner.get_decoder()(**given).last_hidden_state
        del given
        before = live.live
        chosen = hidden.flatten(0, 1)[: work.trainable].clone()
        targets = torch.zeros(work.trainable, dtype=torch.long)
        peak_before, live.peak = live.peak, live.live
        total, _ = supervised_cross_entropy(chosen, inner.get_output_embeddings(), targets, LogitMap())
        of_loss, left_by_loss = live.peak - before, live.live - before
        at_loss = live.peak
        live.peak = max(live.peak, peak_before)
        del hidden, chosen, targets
    total.backward()
    return Passes(live.peak, of_loss if live.peak == at_loss else left_by_loss)


def _autocast(dtype: torch.dtype | None) -> Any:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


class _GroupedMatmul(torch.autograd.Function):
    """[S, K] times the [N, K, M] of N experts -> [S, M], with the memory of its kernels."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(rows.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(tensor) if needs else None for tensor, needs in needed)


@contextlib.contextmanager
def _expert_matmuls_in_any_dtype() -> Iterator[None]:
    """Make the matmuls of experts traceable.

    On fake tensors torch's own supports bf16 only, and that of transformers 5.17 reads values in backward. GPU kernels
    make no gradients of frozen experts, as here; transformers' matmul on CPUs makes them.
    """
    try:
        from transformers.integrations import moe
    except ImportError:
        yield
        return
    former = getattr(moe, "_grouped_mm", None)
    # upstream: transformers 5.23.0 transformers/integrations/moe.py: untraceable, torch's fake matmul takes bf16 only
    moe._grouped_mm = lambda rows, weight, offs: _GroupedMatmul.apply(rows.to(weight.dtype), weight)
    try:
        yield
    finally:
        moe._grouped_mm = former


def _without_mask(model: Any) -> None:
    """Use causal attention without a mask, as on a device: for fake tensors, transformers builds a mask."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    AttentionMaskInterface.register(CAUSAL, lambda *_, **__: None)
    for config in (model.config, model.config.get_text_config()):
        if config._attn_implementation == "sdpa":
            # upstream: transformers 5.23.0 transformers/configuration_utils.py: its attention has no public setter
            config._attn_implementation = CAUSAL


def _with_fake_tensors(model: nn.Module, mode: Any) -> None:
    """Replace meta tensors by fake CPU tensors: autocast does not support the meta device."""
    made: dict[int, Any] = {}
    device = torch.device("cpu")

    def fake(tensor: Tensor) -> Tensor:
        meta = tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
        return mode.fake_tensor_converter.from_meta_and_device(mode, meta, device)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(fake(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
