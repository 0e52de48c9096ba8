"""New tokens: ids in the tokenizer, rows in embedding and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from llmtune.checkpoint import read_adapter_config
from llmtune.data.files import read_lines
from llmtune.errors import UsageError
from llmtune.utils.logging import get_logger

NewRows: TypeAlias = "dict[int, list[int]]"
"""Ids of new tokens, each with those of the tokens that its text was before; with none, it starts from the average of
all embeddings."""


def add_new_tokens(tokenizer: Any, tokens: Sequence[str]) -> NewRows:
    """Add each text as a token. They are not control tokens: they mean the same wherever they occur.

    Raises:
        UsageError: One of them is a token already.
    """
    from tokenizers import AddedToken

    known = [token for token in tokens if token in tokenizer.get_vocab()]
    if known:
        raise UsageError(f"--new_special_tokens {' '.join(known)}: the tokenizer already has it; remove it.")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in dict.fromkeys(tokens)])
    return {int(tokenizer.convert_tokens_to_ids(token)): [] for token in tokens}


def add_tokens_of_file(tokenizer: Any, file: Path) -> NewRows:
    """Add each line of a file as a token; those that the tokenizer has are skipped, and counted.

    Raises:
        UsageError: There is no new token in it.
    """
    from tokenizers import AddedToken

    listed = tokens_of_file(file)
    known = tokenizer.get_vocab()
    pieces = {token: list(tokenizer(token, add_special_tokens=False)["input_ids"]) for token in listed}
    new = [token for token in listed if token not in known and len(pieces[token]) > 1]
    if not new:
        raise UsageError(f"--new_tokens_file {file}: it has {len(listed):,} tokens, and the tokenizer has all of them.")
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in new])
    mean = sum(len(pieces[token]) for token in new) / len(new)
    text = "Added %s tokens of %s to the vocabulary, which were %.1f tokens each; %s are in it already."
    get_logger().info(text, f"{len(new):,}", file, mean, f"{len(listed) - len(new):,}")
    return {int(tokenizer.convert_tokens_to_ids(token)): pieces[token] for token in new}


def tokens_of_file(file: Path) -> list[str]:
    """Return the lines of a file of tokens, each once, without blank ones."""
    lines = (line.rstrip("\r\n") for _, line in read_lines(file.expanduser()))
    return list(dict.fromkeys(line for line in lines if line.strip()))


def grow_vocabulary(model: Any, num_rows: int) -> None:
    """Resize the embeddings to `num_rows`, unless there are enough spare rows."""
    weight = model.get_input_embeddings().weight
    have = weight.shape[0]
    if num_rows > have:
        has_numbers = weight.device.type != "meta"
        model.resize_token_embeddings(num_rows, mean_resizing=has_numbers)
        get_logger().info("Resized the embeddings from %d to %d rows.", have, num_rows)


def start_new_rows(model: Any, rows: Mapping[int, Sequence[int]]) -> None:
    """Set the embedding and head rows of new tokens to the mean of those of the tokens that they were before."""
    import torch

    for layer in vocabulary_layers(model):
        with gathered(layer), torch.no_grad():
            for row, pieces in rows.items():
                if pieces and layer.weight.numel():
                    layer.weight[row] = layer.weight[list(pieces)].float().mean(0).to(layer.weight.dtype)


def vocabulary_layers(model: Any) -> list[Any]:
    """The embedding, and the head unless it has the same weight."""
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    return layers


def gathered(layer: Any) -> AbstractContextManager[Any]:
    """The whole weight of a layer that ZeRO-3 has sharded, changed by rank 0; any other layer is whole."""
    if not hasattr(layer.weight, "ds_id"):
        return nullcontext()
    import deepspeed

    found: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([layer.weight], modifier_rank=0)
    return found


def token_indices(model: Any, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """PEFT's settings to train the rows of these ids: of the embedding, and of an untied head."""
    if not ids:
        return None
    layers = vocabulary_layers(model)
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
