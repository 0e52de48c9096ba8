"""One forward and backward pass of a model without numbers, and the bytes that it would hold meanwhile.

The passes are real, module by module and operation by operation, on tensors that have a shape, a dtype and a device
and no data (torch's FakeTensor). So whatever a model's class, its adapters, autocast and checkpointing keep for the
backward pass is counted and not guessed. What kernels need inside of themselves is not seen.
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
from llmtune.models.supervised_loss import LogitMap, learned_cross_entropy

__all__ = ["LiveBytes", "Passes", "Work", "trace_passes"]

CAUSAL = "llmtune_causal"
"""Name of the attention that is sdpa without a mask."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one pass is given and how.

    Attributes:
        batch, length: B and T of `input_ids`, padding included.
        learned: K, positions that are learned.
        masked: Attention is given a mask of [B, 1, T, T]; else it is causal and knows of none.
        accumulates: Gradients of earlier passes are at hand.
        checkpointing: none, selective or full.
        autocast: Dtype of autocast; None without.
    """

    batch: int
    length: int
    learned: int
    masked: bool = False
    accumulates: bool = True
    checkpointing: str = "none"
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Passes:
    """Bytes beside weights and buffers: at the peak, and what the loss has of it. Gradients are in `peak`."""

    peak: int
    loss: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, from when they are made until nobody holds them.

    `ignored`: tensors that are there already and shall not count.
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
    """Trace a model on the meta device, which is of no other use after."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if work.checkpointing != "none":
        options = checkpointing_kwargs(work.checkpointing) | {"preserve_rng_state": False}
        enable = getattr(inner, "_activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable(options)
    if not work.masked:
        _without_mask(inner)
    mode = FakeTensorMode()
    _without_numbers(model, mode)
    live = LiveBytes(iter([*model.parameters(), *model.buffers()]))
    with mode:
        if work.accumulates:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    live.add(parameter.grad.numel() * parameter.grad.element_size())
                    live._hold(parameter.grad, 0)
        with live, _products_of_experts_in_any_dtype():
            return _passes(inner, work, live)


def _passes(inner: Any, work: Work, live: LiveBytes) -> Passes:
    shape = (work.batch, work.length)
    given: dict[str, Any] = {"input_ids": torch.zeros(shape, dtype=torch.long), "use_cache": False}
    if work.masked:
        # What transformers makes of it is a mask for each pair, of rows behind one another, too.
        given["attention_mask"] = torch.ones(shape, dtype=torch.long)
    with _autocast(work.autocast):
        hidden = inner.get_decoder()(**given).last_hidden_state
        del given
        before = live.live
        chosen = hidden.flatten(0, 1)[: work.learned].clone()
        targets = torch.zeros(work.learned, dtype=torch.long)
        peak_before, live.peak = live.peak, live.live
        total, _ = learned_cross_entropy(chosen, inner.get_output_embeddings(), targets, LogitMap())
        of_loss, left_by_loss = live.peak - before, live.live - before
        at_loss = live.peak
        live.peak = max(live.peak, peak_before)
        del hidden, chosen, targets
    total.backward()
    return Passes(live.peak, of_loss if live.peak == at_loss else left_by_loss)


def _autocast(dtype: torch.dtype | None) -> Any:
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


class _GroupedProduct(torch.autograd.Function):
    """[S, K] by the [N, K, M] of N experts -> [S, M], and what its kernels keep and give."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(rows.shape[0], weight.shape[2])

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.empty_like(tensor) if needs else None for tensor, needs in needed)


@contextlib.contextmanager
def _products_of_experts_in_any_dtype() -> Iterator[None]:
    """Let products of experts be traced.

    Without numbers torch's own is there for bf16 alone, and that of transformers 5.17 asks for numbers on its way back.
    Kernels of a GPU make no gradients of frozen experts, as here; transformers' product on CPUs makes them.
    """
    try:
        from transformers.integrations import moe
    except ImportError:
        yield
        return
    former = getattr(moe, "_grouped_mm", None)
    moe._grouped_mm = lambda rows, weight, offs: _GroupedProduct.apply(rows.to(weight.dtype), weight)
    try:
        yield
    finally:
        moe._grouped_mm = former


def _without_mask(model: Any) -> None:
    """Let attention be causal by itself, as on a device: transformers builds a mask for tensors without numbers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    AttentionMaskInterface.register(CAUSAL, lambda *_, **__: None)
    for config in (model.config, model.config.get_text_config()):
        if config._attn_implementation == "sdpa":
            config._attn_implementation = CAUSAL


def _without_numbers(model: nn.Module, mode: Any) -> None:
    """Put fake tensors of a CPU in the place of meta tensors: autocast does not know of the meta device."""
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
