"""RoPE scaling for sequences longer than a model was trained on, written into its configuration.

transformers applies the configuration in training and inference. No torch here.
"""

from __future__ import annotations

import math
from typing import Any

from llmtune.errors import ModelError, UsageError


def rope_factor(config: Any, kind: str, factor: float | None, max_length: int) -> float:
    """Return the RoPE scaling factor: as given, or the one that reaches max_length.

    Raises:
        UsageError: No scaling is needed. ModelError: The model has no RoPE, or scales it already.
    """
    _rotation(config)
    if factor is not None:
        return float(factor)
    trained = config.get_text_config().max_position_embeddings
    if max_length <= trained:
        length = "no limit of length" if max_length == -1 else f"--max_length {max_length}"
        raise UsageError(
            f"--rope_scaling {kind} is for sequences beyond the {trained:,} tokens that the model was trained on, but "
            f"this run has {length}: use a larger --max_length, or set --rope_factor."
        )
    return float(math.ceil(max_length / trained))


def scale_rope(config: Any, kind: str, factor: float) -> None:
    """Change a configuration, in place: linear, dynamic (NTK) or yarn, by the factor.

    Raises:
        ModelError: As of `rope_factor`.
    """
    text, rotation = config.get_text_config(), _rotation(config)
    rotation |= {"rope_type": kind, "factor": float(factor)}
    trained = text.max_position_embeddings
    if kind == "yarn":
        rotation["original_max_position_embeddings"] = trained
    if kind != "dynamic":  # which compares each text with the length of the training
        text.max_position_embeddings = int(trained * factor)


def _rotation(config: Any) -> dict[str, Any]:
    """The RoPE parameters of full attention in the configuration, to be changed in place."""
    name = config.model_type
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {key: value for key, value in found.items() if isinstance(value, dict)}
    if kinds:  # those of sliding windows see little, and stay
        found = kinds.get("full_attention", {})
    if "rope_theta" not in found:
        raise ModelError(f"--rope_scaling needs RoPE, which a model of type {name} does not have.")
    if found.get("rope_type", "default") != "default":
        raise ModelError(
            f"This model has RoPE scaling already ({found['rope_type']}, for "
            f"{config.get_text_config().max_position_embeddings:,} tokens): remove --rope_scaling."
        )
    rotation: dict[str, Any] = found
    return rotation
