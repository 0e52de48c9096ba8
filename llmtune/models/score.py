"""Reward models: a causal class with a head of one number, read at the last token of each response.

transformers' `ForSequenceClassification` reads the rightmost token of a row that is not padding; with one row a batch,
or any padding whose id ends no response, that is the same token. Here the place is given, so that packed rows have
scores, too.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES
from transformers.utils import ModelOutput

from llmtune.checkpoint import base_of, checkpoint_kind
from llmtune.errors import ModelError
from llmtune.models.heads import SCORE, inner_model
from llmtune.models.ports import find_port, read_config

PADDING = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "<|end_of_text|>", "<unk>")
"""Tokens that tokenizers without a padding token have for such use, or never write at the end of a response."""


@dataclass
class Scores(ModelOutput):  # type: ignore[misc]
    """Output of a reward model, given places. `scores`: [n] in fp32."""

    scores: Tensor | None = None


def score_options(folder: Path) -> dict[str, Any]:
    """Arguments of `get_model_tokenizer` that load a model with a head of one number; a new one where it has none.

    Raises:
        ModelError: transformers has no such class for this model.
    """
    config = read_config(folder)
    kind = str(config.get("model_type"))
    if find_port(config) is not None:
        raise ModelError(
            f"{folder}: a reward model needs a checkpoint in the layout of its native class. Export this one first: "
            "llmtune export --merge_lora true, or train an SFT adapter and merge it."
        )
    if kind not in CLASSES:
        raise ModelError(f"transformers has no class with a score for {kind} models: choose a model of another family.")
    return {
        "model_class": AutoModelForSequenceClassification,
        "new_tensors": (SCORE,),
        "unused_tensors": ("lm_head",),
        "num_labels": 1,
    }


def install_scores(model: nn.Module) -> None:
    """Give a reward model a forward that computes scores at given places, and its own output without.

    `score_places`: [n], places in the flattened batch.
    """
    inner = inner_model(model)
    own_forward = inner.forward

    def forward(self: Any, *args: Any, score_places: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs.pop("num_items_in_batch", None)
        if score_places is None:
            return own_forward(*args, **kwargs)
        kwargs["use_cache"] = False
        states = self.base_model(*args, **kwargs).last_hidden_state.flatten(0, 1)
        head = getattr(self, SCORE)
        return Scores(head(states[score_places.to(states.device)]).squeeze(-1).float())

    forward.__signature__ = inspect.signature(type(inner).forward)  # type: ignore[attr-defined]
    inner.forward = types.MethodType(forward, inner)


def choose_padding(tokenizer: Any, stops: set[int]) -> int:
    """Give the tokenizer a padding token that ends no response, and return its id.

    Args:
        stops: Ids that end responses.

    Raises:
        ModelError: It has none.
    """
    vocabulary = tokenizer.get_vocab()
    names = [tokenizer.pad_token, *PADDING, tokenizer.unk_token, tokenizer.bos_token]
    found = next((name for name in names if name in vocabulary and vocabulary[name] not in stops), None)
    if found is None:
        raise ModelError(
            "The tokenizer has no padding token besides those that end responses, so scores would be read at other "
            "places when it is served: add one with --new_special_tokens '<pad>'."
        )
    tokenizer.pad_token = found
    return int(vocabulary[found])


def load_reward_model(folder: Path, **options: Any) -> Any:
    """Load a folder with full weights, or an adapter with its base, with plain transformers and PEFT."""
    from peft import PeftModel

    if checkpoint_kind(folder) == "full":
        return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    base = str(base_of(folder))
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config, **options)
    return PeftModel.from_pretrained(model, str(folder)).eval()
