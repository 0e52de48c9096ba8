"""Log-likelihoods of given continuations of given prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmtune.inference.engine import pad_left

__all__ = ["Likelihood", "Pair", "likelihoods"]

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt (at least one) and of a continuation."""


@dataclass(frozen=True)
class Likelihood:
    """Score of a continuation. `logprob`: sum of its log-likelihoods. `is_greedy`: whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


@torch.no_grad()
def likelihoods(model: Any, pairs: Sequence[Pair], pad_token_id: int) -> list[Likelihood]:
    """Score one batch. Logits are computed only for the longest continuation's positions, [B, C + 1, V]."""
    if not pairs:
        return []
    batch = pad_left([[*prompt, *continuation] for prompt, continuation in pairs], pad_token_id)
    longest = max(len(continuation) for _, continuation in pairs)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        options["logits_to_keep"] = longest + 1
    logits = model(**batch, **options).logits[:, -(longest + 1) :].float()
    found = []
    for row, (_, continuation) in enumerate(pairs):
        size = len(continuation)
        if not size:
            found.append(Likelihood(0.0, True))
            continue
        targets = torch.tensor(list(continuation), device=logits.device)
        own = torch.log_softmax(logits[row, -size - 1 : -1], dim=-1)
        chosen = own.gather(1, targets[:, None])[:, 0]
        found.append(Likelihood(float(chosen.double().sum()), bool((own.argmax(-1) == targets).all())))
    return found
