"""Where a model's files are: a folder given, a folder made by the entry, or a download from a hub."""

from __future__ import annotations

import re
from pathlib import Path

from llmtune.errors import ModelError
from llmtune.hub.settings import HubOptions, use_hf
from llmtune.models.info import AUTO, ModelInfo
from llmtune.registry import resolve_reference

__all__ = ["is_hub_id", "model_folder"]


def is_hub_id(text: str) -> bool:
    """Whether a text can be the id of a repository, `owner/name`, and is no folder here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None and not Path(text).exists()


def model_folder(
    info: ModelInfo, model_id_or_path: str | None = None, *, hub: HubOptions | None = None, weights: bool = True
) -> Path:
    """The local folder of a model; one that is not here is downloaded.

    Args:
        model_id_or_path: A folder or a hub id instead of the entry's.
        weights: False downloads the configuration and the tokenizer alone.

    Raises:
        ModelError: No such folder. HubError: The hub does not give it.
    """
    hub = hub or HubOptions()
    if model_id_or_path is None and info.get_folder is not None:
        return Path(resolve_reference(info.get_folder, what="The get_folder of a model")())
    place = model_id_or_path or (info.hf_model_id if use_hf(hub.use_hf) else info.model_id_or_path)
    if not place:
        raise ModelError(_no_place(info))
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    if info.get_folder is not None and place == info.model_id_or_path:
        return Path(resolve_reference(info.get_folder, what="The get_folder of a model")())
    if not is_hub_id(place):
        raise ModelError(f"There is no folder {place}. Give the folder of a model, or its id on a hub, as owner/name.")
    from llmtune.hub.fetch import fetch_model

    return fetch_model(
        place,
        use_hf=hub.use_hf,
        revision=hub.revision or info.revision,
        token=hub.token,
        cache_dir=hub.cache_dir,
        ignore_file_pattern=info.ignore_file_pattern,
        weights=weights,
    )


def _no_place(info: ModelInfo) -> str:
    if not info.model_id_or_path:
        return f"The model type {AUTO!r} takes any model: give it with --model_id_or_path."
    return (
        f"The entry of {info.model_id_or_path} knows no id on Hugging Face. "
        "Give the id with --model_id_or_path owner/name, or take it from ModelScope with --use_hf false."
    )
