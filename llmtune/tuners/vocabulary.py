"""New tokens: ids in the tokenizer, rows in embedding and head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.checkpoint import read_adapter_config
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger


def add_new_tokens(tokenizer: Any, tokens: Sequence[str]) -> None:
    """Add each text as a token. They are not control tokens: they mean the same wherever they occur.

    Raises:
        UsageError: One of them is a token already.
    """
    from tokenizers import AddedToken

    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise UsageError(f"--new_special_tokens {' '.join(known)}: the tokenizer already has it; remove it.")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in dict.fromkeys(tokens)])


def grow_vocabulary(model: Any, num_rows: int) -> None:
    """Resize the embeddings to `num_rows`, unless there are enough spare rows."""
    weight = model.get_input_embeddings().weight
    have = weight.shape[0]
    if num_rows > have:
        has_numbers = weight.device.type != "meta"
        model.resize_token_embeddings(num_rows, mean_resizing=has_numbers)
        get_logger().info("Resized the embeddings from %d to %d rows.", have, num_rows)


def token_indices(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """PEFT's settings to train the rows of these ids: of the embedding, and of an untied head."""
    if not ids:
        return None
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    names = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if any(module is one for one in layers)]
    return {name: list(ids) for name in names}


def grow_for_adapter(model: Any, folder: Path) -> None:
    """Resize the base before loading an adapter that trained rows which the base lacks."""
    num_rows = _num_trained_rows(folder)
    if num_rows:
        grow_vocabulary(model, num_rows)


def has_own_tokens(folder: Path) -> bool:
    """Whether an adapter trained single rows of the vocabulary."""
    return _num_trained_rows(folder) > 0


def _num_trained_rows(folder: Path) -> int:
    """Minimum number of embedding rows of the base; 0 if the adapter trained none."""
    try:
        indices = read_adapter_config(folder).get("trainable_token_indices") or {}
        rows = indices.values() if isinstance(indices, dict) else [indices]
        return max((max(ids) + 1 for ids in rows if ids), default=0)
    except (ValueError, TypeError):
        return 0  # PEFT reports what is wrong with the file
