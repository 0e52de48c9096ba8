"""Floating-point operations that a model's training takes, by its shapes.

A product of [t, n] and [n, m] takes 2 t n m operations. Forward: 2 N a token for N weights of matrix products, and
4 H c for attention of heads of H numbers in all to a context of c tokens. Backward: twice that where the weights are
trained; where they are frozen, only the gradient of the inputs, so 4 N in all and not 6 N. The head is computed at
learned positions alone. Recomputation by checkpointing is no part of it, as usual for the model FLOPs utilisation
(PaLM, arXiv 2204.02311, appendix B; Korthikanti et al., arXiv 2205.05198, section 6.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["ModelFlops", "model_flops"]

ROUTED = frozenset({"experts"})
NOT_OF_TEXT = frozenset({"visual", "vision_tower", "vision_model", "original_module"})
"""Parts that rows of text do not go through; the last is what PEFT keeps of a layer that it trains a copy of."""


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of forward and backward: a token, a learned position, a token of context."""

    per_token: float
    per_trainable: float
    per_context: float

    def of(self, tokens: int, trainable: int, contexts: int) -> float:
        """Operations for so many tokens; `contexts`: the sum over tokens of how many each attends to, itself too."""
        return self.per_token * tokens + self.per_trainable * trainable + self.per_context * contexts


def model_flops(model: Any) -> ModelFlops:
    """Those of a model with its adapters, whether on a device or on meta, quantised or divided among processes.

    Of experts, the share that a token is sent to counts. Attention that is not quadratic counts as if it were.
    """
    text = model.config.get_text_config()
    head = model.get_output_embeddings()
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
        if parts & ROUTED:  # experts whose weights lie in one tensor, [experts, out, in]
            weights = [one for one in module.parameters(recurse=False) if one.ndim == 3]
            body += sum(routed * one.numel() * (6 if one.requires_grad else 4) for one in weights)
    heads, layers = (getattr(text, name, None) or 0 for name in ("num_attention_heads", "num_hidden_layers"))
    width = getattr(text, "head_dim", None) or (getattr(text, "hidden_size", 0) // max(heads, 1))
    return ModelFlops(body, at_head, 4 * width * heads * layers * 3)


def _operations(module: nn.Module) -> float:
    """Those of a linear layer of any kind, by its sizes: a weight may be packed, or lie elsewhere."""
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
