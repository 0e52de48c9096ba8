"""Models from their configuration alone: on the meta device, without weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import ModelError, one_line
from llmtune.models.ports import find_port, read_config
from llmtune.registry import resolve_reference

if TYPE_CHECKING:
    import torch


def from_config(config: Any, folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    port = None if trust_remote_code else find_port(read_config(folder))
    try:
        if port is not None:
            model_class: Any = resolve_reference(port.model_class, what=f"The class of {port.family}")
            # upstream: transformers 5.23.0 transformers/modeling_utils.py: only Auto classes have a public from_config
            return model_class._from_config(config, dtype=dtype)
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        has_vision = getattr(config, "vision_config", None) is not None
        model_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
        options = {"trust_remote_code": True} if trust_remote_code else {}
        return model_class.from_config(config, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, AssertionError) as err:
        raise ModelError(f"Cannot build a model from {folder}/config.json: {one_line(err)}") from err


def layer_count(config: Any) -> int:
    return int(config.get_text_config().num_hidden_layers)


def with_layers(config: Any, count: int) -> Any:
    """Return the configuration with fewer layers."""
    found = copy.deepcopy(config)
    text = found.get_text_config()
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]
    return found
