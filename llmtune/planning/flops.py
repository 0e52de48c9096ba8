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

ROUTED = ("experts",)


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of forward and backward: a token, a learned position, a token of context."""

    per_token: float
    per_learned: float
    per_context: float

    def of(self, tokens: int, learned: int, contexts: int) -> float:
        """Operations for so many tokens; `contexts`: the sum over tokens of how many each attends to, itself too."""
        return self.per_token * tokens + self.per_learned * learned + self.per_context * contexts


def model_flops(model: Any) -> ModelFlops:
    """Those of a model with its adapters, whether on a device or on meta.

    Of experts, the share that a token is sent to counts. Attention that is not quadratic counts as if it were.
    """
    from transformers.pytorch_utils import Conv1D

    text = model.config.get_text_config()
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    share = _routed_share(text)
    body = 0.0
    for name, module in model.named_modules():
        parts = set(name.split("."))
        if module is head or parts & {"visual", "vision_tower", "vision_model"}:
            continue
        routed = share if parts & set(ROUTED) else 1.0
        if isinstance(module, nn.Linear | Conv1D):
            body += routed * _operations(module.weight)
        elif parts & set(ROUTED):  # experts whose weights lie in one tensor, [experts, out, in]
            body += sum(routed * _operations(one) for one in module.parameters(recurse=False) if one.ndim == 3)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 4 * width * text.num_attention_heads * text.num_hidden_layers * 3
    return ModelFlops(body, _operations(head.weight) if head is not None else 0.0, attention)


def _operations(weight: Any) -> float:
    count = weight.numel()
    if type(weight).__name__ == "Params4bit" and weight.dtype.itemsize == 1:
        count *= 2  # two numbers lie in a byte
    return count * (6 if weight.requires_grad else 4)


def _routed_share(config: Any) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return float(chosen) / float(total) if total and chosen else 1.0
