"""Lazy access to the tensors of a model folder under the names of its class in transformers.

Files and classes may differ: transformers renames, stacks and splits tensors while it loads (MoE experts are separate
in files and fused in memory). Such tensors are read, and written back, as groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtune.models.ports import find_port, read_config
from llmtune.models.ports.load import native_config
from llmtune.models.ports.tensors import LazyTensor, converted, open_checkpoint
from llmtune.models.whole_weights import check_names, not_ignored_by_class


class Unstreamable(Exception):
    """Reason why a checkpoint cannot be merged tensor by tensor, only in memory."""


@dataclass(frozen=True)
class Group:
    """Tensors that are converted together. `files`: their names in the files; `names`: those in the model."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    converter: Any = None
    """The transformers.WeightConverter between them; None where only names differ."""


class Weights:
    """Tensors of a folder, for one model.

    Args:
        model: Its class; it may be on the meta device.
        folder: With safetensors, or with pickles where `allow_pickle` says so.
        stack: Closes the files.
        new: Beginnings of the names of tensors that may be in no file, and are zero then: the head that an adapter has.
        unused: Beginnings of the names of tensors that the files may have in vain: the head that it replaces.

    Raises:
        ModelError: The files have a tensor that the model does not use.
        Unstreamable: A tensor of the model is in no file, or a conversion cannot be undone.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        stack: ExitStack,
        *,
        allow_pickle: bool,
        remote: bool = False,
        new: Sequence[str] = (),
        unused: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tensors = _open(folder, allow_pickle, remote, stack)
        self.shapes = {name: tuple(value.shape) for name, value in model.state_dict(keep_vars=True).items()}
        absent = [name for name in self.shapes if name.startswith(tuple(new)) and name not in self.tensors]
        if absent:
            dtype = _read(min(self.tensors.values(), key=lambda one: math.prod(_shape(one)))).dtype
            self.tensors |= {name: torch.zeros(self.shapes[name], dtype=dtype) for name in absent}
        self.groups, left = _groups(model, self.tensors, self.shapes)
        left = [name for name in left if not name.startswith(tuple(unused))]
        check_names(folder, (), not_ignored_by_class(model, left), model.config)
        self._group_of = {name: group for group in self.groups for name in group.names}
        self._tied = _tied_names(model)
        missing = [name for name in self.shapes if self._source_of(name) is None]
        if missing:
            raise Unstreamable(f"{len(missing)} tensors are in no file, for instance {missing[0]}")
        for group in self.groups:
            self._check_undone(group)

    def has(self, name: str) -> bool:
        """Return whether a file has the tensor under this name; of tied tensors, often only one is saved."""
        return name in self._group_of

    def tied(self, name: str) -> list[str]:
        """Return all names of a tied parameter, including this one."""
        return self._tied.get(name, [name])

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor by its name in the model, with the model's number of rows."""
        source = self._source_of(name)
        assert source is not None
        group = self._group_of[source]
        tensor = _read(self.tensors[group.files[0]]) if group.converter is None else self._convert(group)[source]
        tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        return _with_rows(tensor, self.shapes[name], name)

    def as_in_files(self, group: Group, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a group under the names, and in the layout, of the files."""
        if group.converter is None:
            return {group.files[0]: tensors[group.names[0]]}
        # upstream: transformers 5.23.0 transformers/core_model_loading.py: not public, converts whole models only
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self.model, tensors)
        return {name: value.contiguous() for name, value in found.items()}

    def file_name(self, name: str) -> str:
        """Return the file name of a tensor that was in no file."""
        # upstream: transformers 5.23.0 transformers/core_model_loading.py: not public, converts whole models only
        from transformers.core_model_loading import revert_weight_conversion

        (found,) = revert_weight_conversion(self.model, {name: torch.empty(0, device="meta")})
        return str(found)

    def _source_of(self, name: str) -> str | None:
        return next((other for other in [name, *self.tied(name)] if other in self._group_of), None)

    def _convert(self, group: Group) -> dict[str, Tensor]:
        return _run(group.converter, {name: _read(self.tensors[name]) for name in group.files}, self.model)

    def _check_undone(self, group: Group) -> None:
        if group.converter is None:
            return
        empty = {name: torch.empty(self.shapes[name], device="meta") for name in group.names}
        try:
            files = set(self.as_in_files(group, empty))
        except Exception as err:  # any error of a conversion means the same
            raise Unstreamable(f"{group.names[0]} cannot be written as its files have it: {err}") from err
        if files != set(group.files):
            raise Unstreamable(f"{group.names[0]} would be written under other names than its files have")


def _open(folder: Path, allow_pickle: bool, remote: bool, stack: ExitStack) -> dict[str, Any]:
    tensors = open_checkpoint(folder, allow_pickle, stack)
    old = read_config(folder)
    port = None if remote else find_port(old)
    if port is None or port.modules is None:
        return tensors
    return dict(converted(tensors, port, old, native_config(folder).to_dict()))


def _groups(model: Any, tensors: dict[str, Any], shapes: dict[str, Any]) -> tuple[list[Group], list[str]]:
    from transformers.conversion_mapping import get_model_conversion_mapping

    # upstream: transformers 5.23.0 transformers/core_model_loading.py: not public, converts whole models only
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    empty = {name: torch.empty(0, device="meta") for name in shapes}
    prefix = model.base_model_prefix
    collected: dict[str, tuple[Any, list[str]]] = {}
    unused: list[str] = []
    for file in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(file, renamings, converters, prefix, empty)
        if name not in shapes and file in shapes:
            name, pattern = file, None
        if name not in shapes:
            unused.append(file)
            continue
        converter = None if pattern is None else deepcopy(by_pattern[pattern])
        known, files = collected.setdefault(name, (converter, []))
        if known is not None:
            known.add_tensor(name, file, pattern, _Recorded(file))
        files.append(file)
    return [_group(name, *found, tensors, model) for name, found in collected.items()], unused


def _group(name: str, converter: Any, files: list[str], tensors: dict[str, Any], model: Any) -> Group:
    if converter is None:
        if len(files) > 1:
            raise Unstreamable(f"{name} is in the files twice, as {' and '.join(files)}")
        return Group(tuple(files), (name,))
    plan = {pattern: [one.file for one in recorded] for pattern, recorded in converter.collected_tensors.items()}
    maker = _Maker(converter, name, plan)
    empty = {file: torch.empty(tuple(_shape(tensors[file])), device="meta") for file in files}
    try:
        made = _run(maker, empty, model)
    except Exception as err:
        raise Unstreamable(f"{name} is converted from its files in a way that needs their values: {err}") from err
    return Group(tuple(files), tuple(made), maker)


@dataclass(frozen=True)
class _Recorded:
    file: str


@dataclass(frozen=True)
class _Maker:
    """A transformers conversion, and the place of each file tensor in it."""

    converter: Any
    name: str
    plan: dict[str, list[str]]


def _run(maker: _Maker, tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    converter = deepcopy(maker.converter)
    converter.collected_tensors.clear()
    for pattern, files in maker.plan.items():
        for file in files:
            converter.add_tensor(maker.name, file, pattern, tensors[file])
    found = converter.convert(maker.name, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _tied_names(model: Any) -> dict[str, list[str]]:
    by_tensor: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(value), []).append(name)
    return {name: names for names in by_tensor.values() if len(names) > 1 for name in names}


def _read(source: Any) -> Tensor:
    found: Tensor = source.read() if isinstance(source, LazyTensor) else source[...]
    return found


def _shape(source: Any) -> tuple[int, ...]:
    if isinstance(source, LazyTensor):
        return tuple(source.read().shape)
    return tuple(source.get_shape() if hasattr(source, "get_shape") else source.shape)


def _with_rows(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Return a resized embedding: new rows are the mean of the existing ones."""
    if tuple(tensor.shape) == shape:
        return tensor
    if tensor.ndim != len(shape) or tensor.shape[1:] != shape[1:] or len(tensor) > shape[0]:
        raise Unstreamable(f"{name} has the shape {tuple(tensor.shape)} in its file, and {shape} in the model")
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(shape[0] - len(tensor), *shape[1:])])
