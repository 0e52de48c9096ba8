"""Further adapters of a model in training that score tokens: a critic, a reward model. They share its base model.

Each has a head of one number beside the model, and is written as PEFT writes adapters of sequence classifiers.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmtune.checkpoint import ADAPTER_FILE, checkpoint_kind
from llmtune.errors import CheckpointError
from llmtune.models.heads import SCORE, inner_model

HEAD = f"base_model.model.{SCORE}.weight"


@contextlib.contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Compute with another adapter, and leave what is trainable as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # upstream: peft 0.21.2 peft/tuners/tuners_utils.py: set_adapter freezes the adapter that the optimizer trains
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, former in zip(layers, before, strict=True):
            layer._active_adapter = former


def add_score_adapter(model: Any, name: str, folder: Path | None = None) -> nn.Linear:
    """Add a frozen adapter to a PEFT model, and return its head.

    Args:
        folder: Of a reward model, or a critic, that it begins as. None: as the base with scores of 0, in the layers
            that the model trains.

    Raises:
        CheckpointError: The folder does not fit the model.
    """
    from peft import PeftConfig

    if folder is not None and (not folder.is_dir() or checkpoint_kind(folder) != "lora"):
        raise CheckpointError(f"{folder} holds no adapter of a critic or reward model.")
    config = copy.deepcopy(model.peft_config["default"] if folder is None else PeftConfig.from_pretrained(str(folder)))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True
    trained = {name: one.requires_grad for name, one in model.named_parameters()}
    model.add_adapter(name, config)
    for parameter, one in model.named_parameters():
        one.requires_grad_(trained.get(parameter, False))
    # The model's own checkpoints hold its own adapter alone.
    if not isinstance(model.save_pretrained, partial) or "selected_adapters" not in model.save_pretrained.keywords:
        model.save_pretrained = partial(model.save_pretrained, selected_adapters=["default"])
    inner = inner_model(model)
    head = nn.Linear(inner.config.get_text_config().hidden_size, 1, bias=False).to(inner.device).requires_grad_(False)
    nn.init.zeros_(head.weight)
    if folder is not None:
        load_score_adapter(model, name, head, folder)
    return head


def score_adapter_parameters(model: Any, name: str) -> list[nn.Parameter]:
    return [one for parameter, one in model.named_parameters() if f".{name}." in f"{parameter}."]


def save_score_adapter(model: Any, name: str, head: nn.Module, folder: Path) -> None:
    """Write an adapter and its head."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    weight: Any = head.weight
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(state | {HEAD: weight.detach().cpu().contiguous()}, folder / ADAPTER_FILE)
    config = copy.deepcopy(model.peft_config[name])
    config.task_type, config.modules_to_save, config.inference_mode = "SEQ_CLS", ["classifier", SCORE], True
    config.save_pretrained(str(folder))
    inner = inner_model(model)
    whole = copy.deepcopy(inner.config)
    whole.num_labels = 1
    whole.architectures = [type(inner).__name__.replace("ForCausalLM", "ForSequenceClassification")]
    whole.save_pretrained(str(folder))


def load_score_adapter(model: Any, name: str, head: nn.Module, folder: Path) -> None:
    """Set an adapter and its head to those of a folder.

    Raises:
        CheckpointError: They do not fit.
    """
    from peft import set_peft_model_state_dict

    state = load_file(folder / ADAPTER_FILE)
    weight = state.pop(HEAD, None)
    if weight is None:
        raise CheckpointError(f"{folder} has no head with a score: it is no reward model.")
    found = set_peft_model_state_dict(model, state, adapter_name=name)
    strange = [key for key in (*found.unexpected_keys, *found.missing_keys) if f".{name}." in f"{key}."]
    if strange:
        raise CheckpointError(f"The adapter in {folder} does not fit this model: {len(strange)} tensors differ.")
    own: Any = head.weight
    with torch.no_grad():
        own.copy_(weight)
