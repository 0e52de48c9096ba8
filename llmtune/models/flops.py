"""FLOPs of training a model, from its shapes.

A matmul of [t, n] and [n, m] takes 2 t n m FLOPs. Forward: 2 N per token for N matmul weights, and 4 H c for attention
of heads with H dimensions in total over a context of c tokens. Backward: twice that for trained weights; for frozen
ones only the gradient of the inputs, so 4 N in total instead of 6 N. The head is computed at trainable positions only.
Recomputation by checkpointing is not counted, as usual for the model FLOPs utilisation (PaLM, arXiv 2204.02311,
appendix B; Korthikanti et al., arXiv 2205.05198, section 6.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from llmtune.models.heads import output_head

ROUTED = frozenset({"experts"})
NOT_OF_TEXT = frozenset({"visual", "vision_tower", "vision_model", "original_module"})
"""Modules that text does not pass through; the last is PEFT's original of a layer whose copy is trained."""


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs of forward and backward: per token, per trainable position, per token of context."""

    per_token: float
    per_trainable: float
    per_context: float

    def of(self, tokens: int, trainable: int, contexts: int) -> float:
        """Return the FLOPs for these counts; `contexts`: the sum over tokens of the context length, itself included."""
        return self.per_token * tokens + self.per_trainable * trainable + self.per_context * contexts


def model_flops(model: Any) -> ModelFlops:
    """Return the FLOPs of a model with its adapters, on any device or meta, quantised or sharded.

    Of experts, the routed fraction counts. Sub-quadratic attention counts as quadratic.
    """
    text = model.config.get_text_config()
    head = output_head(model)
    of_head = {id(one) for one in head.modules()} if head is not None else set()
    share = _routed_share(text)
    body = at_head = 0.0
    for name, module in model.named_modules():
        parts = set(name.split("."))
        if parts & NOT_OF_TEXT:
            continue
        routed = share if parts & ROUTED else 1.0
        operations = routed * _operations(module)
        if id(module) in of_head:
            at_head += operations
        else:
            body += operations
        if parts & ROUTED:  # experts with fused weights, [experts, out, in]
            weights = [one for one in module.parameters(recurse=False) if one.ndim == 3]
            body += sum(routed * one.numel() * (6 if one.requires_grad else 4) for one in weights)
    heads, layers = (getattr(text, name, None) or 0 for name in ("num_attention_heads", "num_hidden_layers"))
    width = getattr(text, "head_dim", None) or (getattr(text, "hidden_size", 0) // max(heads, 1))
    return ModelFlops(body, at_head, 4 * width * heads * layers * 3)


def _operations(module: nn.Module) -> float:
    """FLOPs per token of any linear layer, from its sizes: its weight may be packed or sharded."""
    if isinstance(module, nn.Embedding) or hasattr(module, "base_layer"):
        return 0.0
    sizes = [vars(module).get(name) for name in ("in_features", "out_features")]
    if not all(isinstance(size, int) for size in sizes):
        sizes = [vars(module).get(name) for name in ("nx", "nf")]  # transformers' Conv1D
    if not all(isinstance(size, int) for size in sizes):
        return 0.0
    trained = getattr(getattr(module, "weight", None), "requires_grad", False)
    return float(sizes[0] * sizes[1] * (6 if trained else 4))  # type: ignore[operator]


def _routed_share(config: Any) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return float(chosen) / float(total) if total and chosen else 1.0
