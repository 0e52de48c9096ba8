"""Rotary positions for texts longer than those that a model was trained on: what is written into its configuration.

The configuration is what transformers rotates by and what a checkpoint is served with. No torch here.
"""

from __future__ import annotations

import math
from typing import Any

from llmtune.errors import ModelError, UsageError

__all__ = ["rope_factor", "scale_rope"]


def rope_factor(config: Any, kind: str, factor: float | None, max_length: int) -> float:
    """How far positions are to be stretched: as given, or to reach max_length.

    Raises:
        UsageError: Nothing has to be stretched. ModelError: The model has no positions of that kind, or stretches
            them already.
    """
    _rotation(config)
    if factor is not None:
        return float(factor)
    trained = config.get_text_config().max_position_embeddings
    if max_length <= trained:
        length = "no limit of length" if max_length == -1 else f"--max_length {max_length}"
        raise UsageError(
            f"--rope_scaling {kind} is for texts beyond the {trained:,} tokens that the model was trained on, and this "
            f"run has {length}: give a larger --max_length, or say how far with --rope_factor."
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
    """The part of the configuration that says how positions that see everything are rotated; to be changed."""
    name = config.model_type
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {key: value for key, value in found.items() if isinstance(value, dict)}
    if kinds:  # those of sliding windows see little, and stay
        found = kinds.get("full_attention", {})
    if "rope_theta" not in found:
        raise ModelError(f"--rope_scaling is for rotary positions, which a model of type {name} does not have.")
    if found.get("rope_type", "default") != "default":
        raise ModelError(
            f"The positions of this model are stretched already ({found['rope_type']}, for "
            f"{config.get_text_config().max_position_embeddings:,} tokens): leave --rope_scaling away."
        )
    rotation: dict[str, Any] = found
    return rotation
