"""Which layers `--fp8_base` computes in fp8: the frozen linear layers of the decoder's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from llmtune.models.fp8 import MULTIPLE, fits_fp8, to_fp8
from llmtune.models.layers import is_decoder_layer
from llmtune.tuners.targets import ROUTERS, expert_parameters, part_of
from llmtune.utils.logging import get_logger


def convert_base(model: Any) -> str:
    """Convert the frozen base of a model with its adapters to fp8, in place; return a note on it.

    It comes after the adapters, whose beginning may need the weights, and which say what is trained.
    """
    found = list(frozen_linears(model))
    kept = [name for name, layer in found if not fits_fp8(layer)]
    for _, layer in found:
        if fits_fp8(layer):
            to_fp8(layer)
    if len(kept) == len(found):
        get_logger().warning("--fp8_base has no effect: %s has no frozen linear layers that fit.", type(model).__name__)
        return ""
    others = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in kept))
    aside = f"; not {others}, whose sides are no multiples of {MULTIPLE}" if kept else ""
    return f"fp8 (e4m3, a scale per row) in {len(found) - len(kept)} frozen linear layers of the decoder{aside}"


def frozen_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the frozen linear layers of the decoder's blocks, by name; not those of adapters, nor routers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    own: set[int] = set()
    for tuner in model.modules():
        if isinstance(tuner, BaseTunerLayer):
            base = {id(one) for one in tuner.get_base_layer().modules()}
            own |= {id(one) for one in tuner.modules()} - base
    routers = ROUTERS if expert_parameters(model) else frozenset()
    blocks = tuple(f"{name}." for name, module in model.named_modules() if is_decoder_layer(module))
    for full, module in model.named_modules():
        name = full.removesuffix(".base_layer")
        if type(module) is not nn.Linear or id(module) in own or module.weight.requires_grad:
            continue
        if full.startswith(blocks) and part_of(name) == "language" and name.rpartition(".")[2] not in routers:
            yield name, module
