"""The last layer of a model: of a language model it makes logits, of a reward model a score."""

from __future__ import annotations

from typing import Any

SCORE = "score"
"""Name of the head of a reward model in transformers' `ForSequenceClassification`."""


def inner_model(model: Any) -> Any:
    """Return the model below its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_reward_model(model: Any) -> bool:
    return hasattr(inner_model(model), SCORE) and inner_model(model).get_output_embeddings() is None


def output_head(model: Any) -> Any:
    """Return the layer that makes logits, or scores; None where there is neither."""
    head = inner_model(model).get_output_embeddings()
    return getattr(inner_model(model), SCORE, None) if head is None else head


def task_type(model: Any) -> str:
    """Return PEFT's name of the task: with SEQ_CLS it trains and saves the head, too."""
    return "SEQ_CLS" if is_reward_model(model) else "CAUSAL_LM"


def outputs_per_token(model: Any, **inputs: Any) -> Any:
    """Return what a model computes for each token, [B, T, ...]: logits, or the hidden states below the score."""
    if is_reward_model(model):
        return inner_model(model).base_model(**inputs).last_hidden_state
    return model(**inputs).logits
