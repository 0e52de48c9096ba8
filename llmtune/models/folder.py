"""Where a model's files are: a folder given, a folder made by the entry, or a download from a hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmtune.errors import ModelError
from llmtune.hub.clients import HubOptions, use_hf
from llmtune.models.info import AUTO, ModelInfo
from llmtune.models.ports.load import find_port
from llmtune.models.ports.port import native_modules
from llmtune.registry import resolve_reference
from llmtune.utils.files import read_json


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


# Names and shapes of a folder's tensors, from the headers of its safetensors files: no torch, no weights read


MAX_HEADER = 100_000_000
"""Bytes; what safetensors itself allows."""
LEAVES = ("weight", "bias", "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_packed", "inv_freq")

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(folder: Path) -> Shapes | None:
    """Every tensor of a model folder, as it is called in its files; None where these are no safetensors.

    Raises:
        ModelError: A file is missing or cut off.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        return None
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(f"{index} is no list of weights. Download it again.")
    found: Shapes = {}
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which {index.name} names. Download it again.")
        found |= read_header(folder / name)
    return found


def read_header(file: Path) -> Shapes:
    """The tensors of one file.

    Raises:
        ModelError: It is no whole safetensors file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= min(MAX_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        end = max((one["data_offsets"][1] for one in tensors.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it has {size:,} bytes of {8 + length + end:,}")
        return {name: tuple(one["shape"]) for name, one in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as err:
        raise ModelError(f"{file} is damaged or cut off: {err}. Download it again.") from err


def module_names(folder: Path, *, trust_remote_code: bool = False) -> set[str] | None:
    """Full names of the modules that hold tensors, as the model has them when it is loaded; None where that is unknown.

    Modules that transformers fuses or splits while it loads (experts) are called as in the files.
    """
    shapes = tensor_shapes(folder)
    if shapes is None:
        return None
    found = {name.rpartition(".")[0] for name in shapes if name.rpartition(".")[2] in LEAVES}
    config = read_json(folder / "config.json")
    port = None if trust_remote_code else find_port(config)
    if port is None or port.modules is None:
        return found
    modules = port.modules(port.config(config))
    return {native for name in found for native, _ in native_modules(modules, name)}
