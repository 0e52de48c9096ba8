"""Read a checkpoint tensor by tensor under its native names. Nothing is in memory before it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from llmtune.errors import ModelError
from llmtune.models.ports.port import Config, Modules, Port, Slices, native_modules

# The dimension of a tensor along which the outputs of a linear layer lie. GPTQ stores [in, out], and packs several
# numbers of `bits` each into one int32: inputs in qweight, outputs in qzeros. g_idx has no outputs.
OUTPUT_DIM = {"weight": 0, "bias": 0, "qweight": 1, "scales": 1, "qzeros": 1}
INT32_BITS = 32


class LazyTensor:
    """A tensor as transformers' loader wants it: read when it is indexed.

    Args:
        source: A tensor, or a slice of a safetensors file, which has the same indexing.
    """

    def __init__(
        self, source: Any, *, rows: Slices | None = None, dim: int = 0, pack: int = 1, normalise: bool = False
    ) -> None:
        self._source = source
        self._rows = None if rows is None else [(start // pack, stop // pack) for start, stop in rows]
        self._dim = dim
        self._normalise = normalise

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def read(self) -> Tensor:
        if self._rows is None:
            whole: Tensor = self._source[...]
            return functional.normalize(whole.float(), dim=1) if self._normalise else whole
        before = (slice(None),) * self._dim
        parts = [self._source[(*before, slice(start, stop))] for start, stop in self._rows]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=self._dim)).contiguous()

    def is_floating_point(self) -> bool:
        if isinstance(self._source, Tensor):
            return self._source.is_floating_point()
        return bool(self._source.get_dtype().startswith(("F", "BF")))

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self._source[:1].dtype
        return found


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """The files that hold the weights: those of an index, or all there are; safetensors if there are any.

    Raises:
        ModelError: There are none, one of an index is missing, or they are pickles and those are not allowed.
    """
    kinds = ("safetensors", "bin") if allow_pickle else ("safetensors",)
    for kind in kinds:
        for index in sorted(folder.glob(f"*.{kind}.index.json")):
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing and kind == kinds[-1]:
                raise ModelError(f"{folder} lacks {missing[0]}, which {index.name} names. Download it again.")
            if not missing:
                return sorted(folder / name for name in names)
        files = [path for path in sorted(folder.glob(f"*.{kind}")) if path.name != "training_args.bin"]
        if files:
            return files
    raise ModelError(f"{folder} has no weights (*.safetensors). The download may be incomplete.")


def open_checkpoint(folder: Path, allow_pickle: bool, stack: ExitStack) -> dict[str, Any]:
    """All tensors of a folder by name, none of them read yet; `stack` closes the files."""
    found: dict[str, Any] = {}
    for file in weight_files(folder, allow_pickle):
        if file.suffix == ".safetensors":
            opened = stack.enter_context(safe_open(file, framework="pt"))
            found |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
        else:
            found |= _load_pickle(file)
    return found


def converted(tensors: dict[str, Any], port: Port, old: Config, new: Config) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint under their native names.

    Args:
        tensors: Tensors, or what stands for them, by their names in the checkpoint.
        old: Its config.json. new: What the port made of it.

    Raises:
        ModelError: A tensor that the family does not have.
    """
    assert port.modules is not None
    modules = port.modules(new)
    quantised = old.get("quantization_config") or {}
    pack = INT32_BITS // int(quantised.get("bits", INT32_BITS))
    normalised = {"lm_head.weight"} if port.normalised_head(old) else set()
    found: dict[str, LazyTensor] = {}
    unknown = []
    for name, source in tensors.items():
        if name.endswith(".inv_freq") or any(re.fullmatch(pattern, name) for pattern in port.leaves_out):
            continue
        natives = list(_parts(name, source, modules, pack, normalised))
        if not natives:
            unknown.append(name)
        if quantised and name.endswith(".bias"):
            natives = [(native, part) for native, part in natives if _is_biased(native, part, port)]
        found.update(natives)
    if unknown:
        raise ModelError(
            f"This is no {port.family} checkpoint as its config.json says: {len(unknown)} of its tensors are not of "
            f"that family, {unknown[0]} for one."
        )
    return found


def _parts(
    name: str, source: Any, modules: Modules, pack: int, normalised: set[str]
) -> Iterator[tuple[str, LazyTensor]]:
    module, _, leaf = name.rpartition(".")
    for native, rows in native_modules(modules, module):
        if rows is None or leaf == "g_idx":
            yield f"{native}.{leaf}", LazyTensor(source, normalise=f"{native}.{leaf}" in normalised)
        elif leaf not in OUTPUT_DIM:
            raise ModelError(f"{name} has to be split, and how {leaf} is stored is not known.")
        else:
            step = pack if leaf == "qzeros" else 1
            if any(edge % step for block in rows for edge in block):
                raise ModelError(f"{name} cannot be split: the parts do not end at whole 32-bit numbers.")
            yield f"{native}.{leaf}", LazyTensor(source, rows=rows, dim=OUTPUT_DIM[leaf], pack=step)


def _is_biased(native: str, part: LazyTensor, port: Port) -> bool:
    """GPTQ gives every layer a bias. Where the model has none it is zero and left out."""
    if native.removesuffix(".bias").endswith(port.biased):
        return True
    if part.read().any():
        raise ModelError(f"{native} is not zero, and {port.family} models have no such bias.")
    return False


def _load_pickle(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True)
    return found
