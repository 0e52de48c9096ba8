"""Optional packages stay unimported until something needs them.

transformers, accelerate and peft import quantisation libraries, scipy and boto3 wherever they are installed: seconds
and a hundred MiB of each run that uses none. Here they are imported with stand-ins for those packages, which import the
real one at first use. Nothing of it stays in `sys.modules`: who imports such a package afterwards gets the package
itself. What was imported before, by a notebook say, stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import llmtune.utils.logging  # noqa: F401 (what the libraries say as they are imported is silenced there)

STOOD_IN: dict[str, tuple[str, ...]] = {
    # upstream: peft 0.21.2 peft/helpers.py: imports bitsandbytes and with it torch._inductor, 1 to 2 s and 45 MiB
    "bitsandbytes": (),
    # upstream: accelerate 1.15.0 accelerate/commands/config/sagemaker.py: imports boto3 to ask for a configuration
    "boto3": (),
    "botocore": (),
    "botocore.exceptions": (),
    # upstream: transformers 5.23.0 transformers/loss/loss_for_object_detection.py: imports scipy with every model
    "scipy.optimize": ("linear_sum_assignment",),
    # upstream: transformers 5.23.0 transformers/quantizers/quantizer_torchao.py: imports torchao with every model
    "torchao.prototype.safetensors.safetensors_support": (
        "flatten_tensor_state_dict",
        "unflatten_tensor_state_dict",
    ),
}
"""Module: the functions that are taken from it by name."""

NEW_OBJECTS = 20_000
"""Between two garbage collections, while importing."""

AMAZON = ("boto3", "botocore", "botocore.exceptions")

ASKED_BY_PEFT = {
    "is_bnb_available": "bitsandbytes",
    "is_bnb_4bit_available": "bitsandbytes",
    "is_gptqmodel_available": "gptqmodel",
    "is_torchao_available": "torchao",
}
"""Functions of peft's tuners: the packages that they import then."""


@functools.cache
def import_libraries() -> None:
    """Import transformers' models and peft without the optional packages that they merely find installed."""
    with stood_in(*STOOD_IN):
        import peft
        import transformers.modeling_utils  # noqa: F401
    _ask_when_loaded(peft.__name__)


def import_tensorboard() -> None:
    """Import torch's writer of TensorBoard's files, where tensorboard is installed; transformers would take it next."""
    # upstream: tensorboard 2.21.0 tensorboard/compat/tensorflow_stub/io/gfile.py: imports boto3 for files in S3
    with contextlib.suppress(ImportError), stood_in(*AMAZON):
        import torch.utils.tensorboard  # noqa: F401


@contextlib.contextmanager
def uncollected_imports() -> Iterator[None]:
    """Import within the block with garbage collections of new objects only, and spare later ones what was imported.

    A million objects that stay are looked at again in each full collection, 0.3 s of them. For commands, whose process
    is their own: what a program holds otherwise stays out of it.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    usual = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS, 1_000, 1_000)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*usual)


@contextlib.contextmanager
def stood_in(*names: str) -> Iterator[None]:
    """Put stand-ins into `sys.modules`, for those modules that are installed and not imported yet."""
    placed = [_StandIn(name, STOOD_IN[name]) for name in names if _is_only_installed(name)]
    sys.modules.update({stand_in.__name__: stand_in for stand_in in placed})
    try:
        yield
    finally:
        for stand_in in placed:
            stand_in.leave()


class _StandIn(ModuleType):
    """A module that imports the real one as soon as an attribute is used."""

    def __init__(self, name: str, functions: tuple[str, ...]) -> None:
        super().__init__(name)
        top, _, below = name.partition(".")
        self._own = () if below else ("__path__", "__version__")
        self.__spec__ = ModuleSpec(name, None) if below else find_spec(top)  # is what checks of availability ask for
        for function in functions:
            setattr(self, function, functools.partial(self._call, function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in self._own:  # inspect asks each module for its file
            raise AttributeError(f"module {self.__name__!r} is not imported yet: {name}")
        real, below = self._real(), f"{self.__name__}.{name}"
        return importlib.import_module(below) if below in STOOD_IN else getattr(real, name)

    def _call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._real(), function)(*args, **kwargs)

    def _real(self) -> ModuleType:
        self.leave()
        return importlib.import_module(self.__name__)

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


def _is_only_installed(name: str) -> bool:
    top = name.partition(".")[0]
    return top not in sys.modules and find_spec(top) is not None


def _ask_when_loaded(package: str) -> None:
    """Let peft's tuners take a layer for a quantised one only once the package of such layers is loaded."""
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{package}.tuners."):
            for function, needed in ASKED_BY_PEFT.items():
                if function in vars(module):
                    # upstream: peft 0.21.2 peft/tuners/lora/awq.py: imports gptqmodel, where installed, for each layer
                    setattr(module, function, _and_loaded(needed, vars(module)[function]))


def _and_loaded(package: str, is_available: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: package in sys.modules and is_available()
