"""Memory of a training run, by part, from config.json only."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from llmtune.arguments.online import OnlineStage
from llmtune.arguments.optimizers import in_bf16, offloads
from llmtune.models.flops import ModelFlops, model_flops
from llmtune.models.heads import output_head
from llmtune.models.info import ModelInfo
from llmtune.models.loading import layer_count
from llmtune.models.ports import native_config
from llmtune.planning.online import with_rollouts
from llmtune.planning.trace import Passes, Work, shapes, trace_passes, weight_bytes
from llmtune.planning.workload import Batch, Sharding, fullest_share
from llmtune.utils.logging import quiet_libraries

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


FEW_LAYERS = (3, 6)
"""Depths traced in place of a deep model: every layer holds the same."""

DEEP = 12

ALONE = Sharding()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on one device, by part, and counts from the shapes.

    Attributes:
        activations: Tensors kept for backward, and temporaries of forward and backward.
        logits: Memory of the loss at the peak.
        step: Temporaries of the optimizer step, when activations are freed.
        total: Peak; not the sum, since activations and the step do not overlap.
        saved: Bytes of one checkpoint on disk, (weights, optimizer).
        rollouts: KV cache of responses, when activations are freed.
        roles: Models and adapters beside the trained one, by name: see `planning.online`.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    step: int
    trainable: int
    parameters: int
    saved: tuple[int, int]
    flops: ModelFlops
    rollouts: int = 0
    roles: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        during = self.gradients + self.activations + self.logits
        beside = self.weights + self.optimizer + sum(self.roles.values())
        return beside + max(during, self.gradients + self.step, self.rollouts)


@dataclass
class Estimator:
    """Estimates for one model; shapes and traces are cached.

    Attributes:
        folder: With config.json.
        dtype: Compute dtype: bf16, fp16 or fp32. Full fine-tuning keeps fp32 master weights, but with --pure_bf16.
        on_gpu: Whether the device is a GPU, where optimizers work differently.
    """

    info: ModelInfo
    folder: Path
    dtype: torch.dtype
    on_gpu: bool
    _traced: dict[Any, Passes] = field(default_factory=dict)
    _counted: dict[Any, Any] = field(default_factory=dict)

    def estimate(self, args: StageArguments, batch: Batch, sharding: Sharding = ALONE) -> Estimate:
        """Estimate a run.

        Raises:
            ModelError: transformers cannot build a model from the configuration. RuntimeError, or other errors of the
                model's code: it cannot be traced, since it depends on tensor values.
        """
        quiet_libraries()
        key = self._key(args)
        kept = self._kept(args)
        if (key, sharding.spread) not in self._counted:
            model = shapes(args, self.info, self.folder, kept, None)
            self._counted[key, sharding.spread] = _Static.of(model, args, sharding.spread)
        static: _Static = self._counted[key, sharding.spread]
        # Sharded weights are gathered in the compute dtype; elsewhere autocast keeps a copy of each for backward.
        computed = self.dtype if sharding.weights > 1 else kept
        passes = self._passes(args, batch, key, computed)
        tensors = static.trained
        optimizer = OFFLOADED if offloads(args) else args.optim or DEFAULT_OPTIMIZER
        states = state_bytes(optimizer, tensors, self.on_gpu)
        # DDP copies gradients into buckets
        buckets = static.gradients if sharding.ranks > 1 and sharding.gradients == 1 else 0
        gathered = static.largest_layer if sharding.weights > 1 else 0
        weights = 0 if sharding.offloads_weights else static.weights // sharding.weights
        activations = max(passes.peak - passes.loss - static.gradients * computed.itemsize // kept.itemsize, 0)
        share = static.fullest_share
        found = Estimate(
            weights=round(weights * share) + gathered,
            gradients=round((static.gradients // sharding.gradients + buckets) * share),
            optimizer=0 if sharding.offloads_optimizer else round(states // sharding.optimizer * share),
            activations=round(activations * share),
            logits=passes.loss,
            step=step_bytes(optimizer, round(static.gradients // sharding.optimizer * share), self.on_gpu),
            trainable=static.trainable,
            parameters=static.parameters,
            saved=(static.saved, 0 if args.only_save_model else state_bytes(optimizer, tensors, on_gpu=False)),
            flops=static.flops,
        )
        return with_rollouts(found, args, batch, self.folder, self.dtype) if isinstance(args, OnlineStage) else found

    def _passes(self, args: StageArguments, batch: Batch, key: Any, kept: torch.dtype) -> Passes:
        work = Work(
            batch=batch.size,
            length=batch.length,
            trainable=max(batch.trainable, 1),
            masked=(batch.padded or batch.packed) and not self._maskless(args, batch),
            accumulates=args.gradient_accumulation_steps > 1,
            checkpointing="none" if args.gradient_checkpointing == "auto" else str(args.gradient_checkpointing),
            autocast=None if self.dtype is torch.float32 else self.dtype,
        )
        if (key, work, kept) not in self._traced:
            self._traced[key, work, kept] = self._trace(args, work, kept)
        return self._traced[key, work, kept]

    def _trace(self, args: StageArguments, work: Work, kept: torch.dtype) -> Passes:
        config = native_config(self.folder, trust_remote_code=args.trust_remote_code)
        depth = layer_count(config)
        marked = copy.copy(args)
        marked.gradient_checkpointing = work.checkpointing  # type: ignore[assignment]  # adapters read it

        def at(layers: int | None) -> Passes:
            return trace_passes(shapes(marked, self.info, self.folder, kept, layers), work)

        # Without accumulated gradients, only deep models may peak at the end of backward.
        straight = work.accumulates or args.sft_type != "full"
        if depth <= DEEP or not _uniform(config.get_text_config()) or not straight:
            return at(None)
        few, more = (at(layers) for layers in FEW_LAYERS)
        by_layer = (more.peak - few.peak) / (FEW_LAYERS[1] - FEW_LAYERS[0])
        return Passes(round(more.peak + by_layer * (depth - FEW_LAYERS[1])), more.loss)

    def _kept(self, args: StageArguments) -> torch.dtype:
        """Dtype of the stored weights: see `llmtune.training.build`."""
        return torch.float32 if args.sft_type == "full" and not in_bf16(args) else self.dtype

    def _key(self, args: StageArguments) -> Any:
        names = (
            *("sft_type", "quantization_bit", "bnb_4bit_use_double_quant", "lora_rank", "lora_target_modules"),
            *("modules_to_save", "lora_bias", "use_dora", "freeze_layers", "freeze_parameters", "freeze_vit"),
            *("freeze_aligner", "peft_path", "new_special_tokens", "use_flash_attn", "lora_dropout_p", "pure_bf16"),
            "fp8_base",
        )
        others = tuple(str(getattr(args, name, None)) for name in ("attn_impl", "quant_method", "new_tokens_file"))
        return (*(str(getattr(args, name)) for name in names), *others)

    def _maskless(self, args: StageArguments, batch: Batch) -> bool:
        """Whether attention takes sequence bounds instead of a mask: varlen is chosen for packing."""
        chosen = getattr(args, "attn_impl", "sdpa")
        if chosen is None and batch.packed and args.use_flash_attn is None:
            return self.on_gpu or not getattr(args, "torch_compile", False)
        return bool(args.use_flash_attn) or str(chosen).startswith(("flash", "varlen", "flex"))


class Trained(NamedTuple):
    """A trainable tensor. `size`: bytes per number. `embedding`, `head`: whether it is one's weight."""

    shape: tuple[int, ...]
    size: int
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class _Static:
    """Counts from the shapes, without a pass."""

    weights: int
    gradients: int
    trainable: int
    parameters: int
    saved: int
    largest_layer: int
    trained: list[Trained]
    flops: ModelFlops
    fullest_share: float

    @classmethod
    def of(cls, model: Any, args: StageArguments, spread: int) -> _Static:
        found = list(weight_bytes(model))
        embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
        head = output_head(model)
        heads = {id(one) for one in ([] if head is None else head.parameters())}
        trained = [one for one, _ in found if one.requires_grad]
        buffers = sum(one.numel() * one.element_size() for one in model.buffers())
        whole = args.sft_type == "full"
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers: dict[str, int] = {}
        for name, one in inner.named_parameters():
            layer = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name
            layers[layer] = layers.get(layer, 0) + one.numel() * one.element_size()
        return cls(
            weights=sum(size for _, size in found) + buffers,
            gradients=sum(one.numel() * one.element_size() for one in trained),
            trainable=sum(one.numel() for one in trained),
            parameters=sum(one.numel() for one, _ in found),
            saved=sum(one.numel() * one.element_size() for one, _ in found if whole or one.requires_grad),
            largest_layer=max(layers.values(), default=0),
            trained=[
                Trained(tuple(one.shape), one.element_size(), id(one) in embeddings, id(one) in heads)
                for one in trained
            ],
            flops=model_flops(model),
            fullest_share=fullest_share(inner, spread),
        )


def _uniform(config: Any) -> bool:
    """Whether all layers are alike."""
    kinds = set(getattr(config, "layer_types", None) or ())
    some = ("first_k_dense_replace", "mlp_only_layers", "sliding_window_pattern", "no_rope_layers")
    return len(kinds) <= 1 and not any(getattr(config, name, None) for name in some)


# Memory of optimizer states, by transformers' optimizer names. No torch


DEFAULT_OPTIMIZER = "adamw_torch_fused"
"""Default of `--optim` on GPUs. The CPU default keeps the same states."""

OFFLOADED = "offloaded"
"""AdamW of `--optim_offload`: fp32 master weights and states in CPU memory."""

_BLOCK = 256
"""Numbers per fp32 scale of an 8-bit state, in bitsandbytes and torchao; of a 4-bit one, as transformers sets it."""

_SMALL = 4096
"""Tensors below this size keep whole states in 8-bit optimizers of bitsandbytes (fp32) and torchao (their dtype)."""


def state_bytes(name: str, tensors: Iterable[Trained], on_gpu: bool = True) -> int:
    """Return the bytes of the optimizer states after the first step.

    Args:
        name: `--optim`, or OFFLOADED.
        tensors: bitsandbytes keeps the states of embeddings in fp32, Muon has one for each matrix of the layers.
        on_gpu: Paged and offloaded states then count as CPU memory. Paged optimizers page on GPUs only.
    """
    return sum(_of_tensor(name, tensor, on_gpu) for tensor in tensors)


def step_bytes(name: str, gradients: int, on_gpu: bool) -> int:
    """Return the temporaries of a step: torch's AdamW on a GPU processes all tensors at once."""
    return gradients if on_gpu and name in ("adamw_torch", "adamax", "rmsprop", "adagrad") else 0


def _of_tensor(name: str, tensor: Trained, on_gpu: bool) -> int:
    shape, size = tensor.shape, tensor.size
    count = math.prod(shape)
    if on_gpu and ("paged" in name or name == OFFLOADED):
        return 0
    if name == OFFLOADED:
        return 3 * 4 * count
    if name == "sgd":
        return 0
    if "adafactor" in name:
        return 4 * (sum(shape[-2:]) if len(shape) >= 2 else count)
    states = 1 if any(part in name for part in ("lion", "rmsprop", "adagrad")) else 2
    if name == "muon":
        states = 1 if len(shape) == 2 and not (tensor.embedding or tensor.head) else 2
    if name == "stable_adamw" and size < 4:
        states = 3  # what rounding lost is the third
    if "torch" in name and "bit" in name:
        small = count < _SMALL or count % _BLOCK
        bits = 4 if "4bit" in name else 8
        return states * (count * size if small else count * bits // 8 + count * 4 // _BLOCK)
    if "8bit" in name:
        small = count < _SMALL or tensor.embedding
        return states * (count * 4 if small else count + count * 4 // _BLOCK)
    if "32bit" in name:
        size = 4
    return states * count * size
