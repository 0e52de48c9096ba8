"""The model of a run on the meta device, and the peak memory of its forward and backward pass on fake tensors.

The passes run module by module and operation by operation on tensors with shape, dtype and device but no data (torch's
FakeTensor). So whatever the model's class, its adapters, autocast and checkpointing keep for backward is counted, not
estimated. Workspaces inside kernels are not counted.
"""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llmtune.checkpoint import adapter_folder
from llmtune.models.chunked_loss import LogitMap, supervised_cross_entropy
from llmtune.models.heads import is_reward_model, output_head
from llmtune.models.info import ModelInfo
from llmtune.models.layers import checkpointing_kwargs
from llmtune.models.loading import from_config, with_layers
from llmtune.models.ports import native_config
from llmtune.models.score import score_options
from llmtune.tuners.fp8_base import convert_base
from llmtune.tuners.lora import attach
from llmtune.tuners.tune import prepare_tuner
from llmtune.tuners.vocabulary import grow_vocabulary, tokens_of_file

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


RESPONSES = 2
"""Responses of a comparison: those of a pair."""
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
    with contextlib.nullcontext() if work.autocast is None else torch.autocast("cpu", work.autocast):
        scores = is_reward_model(inner)
        decoder = inner.base_model if scores else inner.get_decoder()
        hidden = decoder(**given).last_hidden_state
        del given
        before = live.live
        chosen = hidden.flatten(0, 1)[: RESPONSES * work.batch if scores else work.trainable].clone()
        targets = torch.zeros(work.trainable, dtype=torch.long)
        peak_before, live.peak = live.peak, live.live
        if scores:
            total = output_head(inner)(chosen).float().sum()
        else:
            total, _ = supervised_cross_entropy(chosen, inner.get_output_embeddings(), targets, LogitMap())
        of_loss, left_by_loss = live.peak - before, live.live - before
        at_loss = live.peak
        live.peak = max(live.peak, peak_before)
        del hidden, chosen, targets
    total.backward()
    return Passes(live.peak, of_loss if live.peak == at_loss else left_by_loss)


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


# The model that sft would train, on the meta device


class _Dequantized(torch.autograd.Function):
    """A matmul whose weight is dequantised in forward and again in backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = inputs.dtype
        return nn.functional.linear(inputs.to(dtype), torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        whole = torch.empty_like(weight, dtype=grads[0].dtype)
        return (grads[0] @ whole).to(ctx.dtype), None, None


class ShapeOfQuantized(nn.Linear):
    """A linear layer with a packed quantised weight: models its memory, not its result."""

    packed_bits: float
    compute_dtype: torch.dtype

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = _Dequantized.apply(inputs, self.weight, self.compute_dtype)
        return found if self.bias is None else found + self.bias.to(found.dtype)


def shapes(
    args: StageArguments, info: ModelInfo, folder: Path, dtype: torch.dtype, num_layers: int | None = None
) -> Any:
    """Build the model that a stage would train, on the meta device; for `rm`, one with a score and no LM head.

    Args:
        folder: With its config.json; no weights are read.
        dtype: Of the stored weights.
        num_layers: Build fewer layers.

    Raises:
        ModelError: transformers cannot build a model from this configuration.
    """
    if args.SCORES:
        score_options(folder)  # raises where there is no such class
    config = native_config(folder, trust_remote_code=args.trust_remote_code)
    bits = _bits(args, config)
    if num_layers is not None:
        config = with_layers(config, num_layers)
    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    # This machine may lack the planned one's attention: FlashAttention keeps what sdpa keeps.
    # upstream: transformers 5.23.0 transformers/configuration_utils.py: its attention has no public setter
    config._attn_implementation = "eager" if getattr(args, "attn_impl", None) == "eager" else None
    with torch.device("meta"):
        model = from_config(config, folder, dtype, args.trust_remote_code, scores=args.SCORES)
        model.config.name_or_path = model.name_or_path = str(folder)
        if bits:
            _quantize(model, info, bits, dtype)
        num_new = num_new_tokens(args)
        if num_new:
            grow_vocabulary(model, model.get_input_embeddings().weight.shape[0] + num_new)
        plain = copy.copy(args)
        plain.lora_init = "default"  # the others have the same shapes, but compute them from weights
        if args.peft_path is not None:
            tuned = _like_checkpoint(model, Path(args.peft_path))
        else:
            rows = model.get_input_embeddings().weight.shape[0]
            new = range(rows - num_new, rows) if num_new else ()
            tuned = prepare_tuner(model, plain, info, num_steps=100, new_token_ids=list(new))
        if args.fp8_base:
            convert_base(tuned)
        return tuned.train()


def num_new_tokens(args: Any) -> int:
    """Tokens that the flags add to the vocabulary; of a file, all that it lists."""
    file = getattr(args, "new_tokens_file", None)
    return len(args.new_special_tokens) + (0 if file is None else len(tokens_of_file(Path(file))))


def _like_checkpoint(model: Any, folder: Path) -> Any:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter_folder(folder)))
    config.inference_mode = False
    return attach(model, config)


# Quantised weights


def _bits(args: StageArguments, config: Any) -> float:
    """Bits per quantised weight, quantisation constants included; 0 if not quantised."""
    if args.quantization_bit == 8:
        return 8.0
    if args.quantization_bit == 4:  # a scale for 64 numbers: fp32, or 8 bits and an fp32 for 256 scales
        return 4 + (8 / 64 + 32 / (64 * 256) if args.bnb_4bit_use_double_quant else 32 / 64)
    found = getattr(config, "quantization_config", None)
    if not found:
        return 0
    found = found if isinstance(found, dict) else found.to_dict()
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8)
    group = found.get("group_size") or 128
    return float(bits) + (16 + bits) / group if group > 0 else float(bits)


def _quantize(model: Any, info: ModelInfo, bits: float, dtype: torch.dtype) -> None:
    from llmtune.tuners.tune import prepare_quantized

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        skipped = any(f".{part}." in f".{name}." for part in info.skip_quantization)
        if type(module) is nn.Linear and module is not head and not skipped:
            # upstream: bitsandbytes 0.50.2 no issue: its layers are quantised by moving real weights to a device
            module.__class__ = ShapeOfQuantized
            module.packed_bits, module.compute_dtype = bits, dtype  # type: ignore[assignment]
    prepare_quantized(model)


def weight_bytes(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Yield each parameter with its size in bytes."""
    packed = {
        id(module.weight): module.packed_bits for module in model.modules() if isinstance(module, ShapeOfQuantized)
    }
    for parameter in model.parameters():
        bits = packed.get(id(parameter), parameter.element_size() * 8)
        yield parameter, math.ceil(parameter.numel() * bits / 8)
