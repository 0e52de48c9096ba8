"""Names and shapes of a folder's tensors, from the headers of its safetensors files: no torch, no weights read."""

from __future__ import annotations

import json
from pathlib import Path

from llmtune.errors import ModelError
from llmtune.models.ports.find import find_port
from llmtune.models.ports.port import native_modules
from llmtune.utils.files import read_json

__all__ = ["module_names", "read_header", "tensor_shapes"]

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
