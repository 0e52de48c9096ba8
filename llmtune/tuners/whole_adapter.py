"""Completeness check of adapters: tensors that PEFT left at their initial values, or ignored, are an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmtune.errors import CheckpointError
from llmtune.models.whole_weights import names_text

SHARED = ("vera_A", "vera_B")
"""VeRA's random matrices: regenerated from the configuration if a file was saved without them."""


def check_adapter(model: Any, folder: Path, *, name: str = "default", report: Any = None) -> None:
    """Compare the adapter `name` in the model with the tensors in its file.

    Args:
        model: With the adapter loaded.
        report: What PEFT's `load_adapter` returned, where that is known; it also knows of tensors that PEFT renames.

    Raises:
        CheckpointError: A tensor of the adapter is in no file, or one in the file has no place in the model.
    """
    saved = _names_in(folder)
    wanted = _names_of(model, name)
    if report is not None and not saved & wanted:  # PEFT has other names for all of them, those of an older version
        missing, unused = set(report.missing_keys), set(report.unexpected_keys)
    else:
        missing, unused = wanted - saved, saved - wanted
    missing = {one for one in missing if not one.endswith(SHARED)}
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing):,} tensors that they need ({names_text(sorted(missing))})")
    if unused:
        parts.append(f"{len(unused):,} of its tensors have no place in them ({names_text(sorted(unused))})")
    if parts:
        raise CheckpointError(
            f"The adapter in {folder} does not fit the model and its adapter_config.json: {' and '.join(parts)}. "
            "Was it trained on another model, or is it incomplete? Use another checkpoint of the run."
        )


def _names_of(model: Any, name: str) -> set[str]:
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))


def _names_in(folder: Path) -> set[str]:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    import torch

    return set(torch.load(folder / "adapter_model.bin", map_location="meta", weights_only=True))
