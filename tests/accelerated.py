"""A stand-in of torch's device module of an accelerator that this machine lacks; it records what it is asked."""

from __future__ import annotations

import types
from typing import Any

import torch

GIB = 2**30
FREE, TOTAL, USED, PEAK = 20 * GIB, 24 * GIB, 3 * GIB, 5 * GIB
KINDS = ("cuda", "npu", "xpu", "mps")


class Device:
    """What `torch.accelerator.current_accelerator()` returns; this torch knows no npu."""

    index = None

    def __init__(self, kind: str) -> None:
        self.type = kind


def device_module(
    kind: str,
    *,
    count: int = 1,
    bf16: bool = True,
    capability: tuple[int, int] = (9, 0),
    calls: list[Any] | None = None,
) -> types.ModuleType:
    """Return a module with the functions that torch's own of this kind has, and only those."""
    calls = [] if calls is None else calls

    def answer(name: str, value: Any) -> Any:
        def function(*args: Any, **options: Any) -> Any:
            calls.append((name, *args, *options.items()))
            return value

        return function

    names: dict[str, Any] = {"is_available": True, "device_count": count, "empty_cache": None, "manual_seed_all": None}
    if kind == "mps":
        names |= {"recommended_max_memory": TOTAL, "driver_allocated_memory": PEAK, "current_allocated_memory": USED}
    else:
        names |= {
            "current_device": count - 1, "set_device": None, "get_device_name": f"{kind.upper()} 9",
            "memory_allocated": USED, "max_memory_allocated": PEAK, "mem_get_info": (FREE, TOTAL),
            "is_bf16_supported": bf16,
        }  # fmt: skip
    if kind == "cuda":
        names["get_device_capability"] = capability
    if kind == "xpu":
        names["get_device_properties"] = types.SimpleNamespace(has_fp64=False)
    module = types.ModuleType(f"torch.{kind}")
    for name, value in names.items():
        setattr(module, name, answer(name, value))
    return module


def pretend(
    monkeypatch: Any, kind: str, *, count: int = 1, bf16: bool = True, capability: tuple[int, int] = (9, 0)
) -> list[Any]:
    """Let torch say that this machine has an accelerator; return the calls of its module."""
    calls: list[Any] = []
    module = device_module(kind, count=count, bf16=bf16, capability=capability, calls=calls)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind != "cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: None if kind == "cpu" else Device(kind))
    if kind == "mps":
        monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "MPS 9", raising=False)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: bf16)
    if kind in ("cuda", "mps"):  # torch's own functions ask these two for other things besides
        for name, function in vars(module).items():
            if not name.startswith("_") and name != "manual_seed_all":
                monkeypatch.setattr(getattr(torch, kind), name, function)
    elif kind != "cpu":
        monkeypatch.setattr(torch, kind, module, raising=False)
    return calls
