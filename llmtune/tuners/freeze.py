"""Partial full fine-tuning: the first layers, or parameters by name, are frozen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llmtune.errors import UsageError
from llmtune.tuners.parts import part_of

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments

__all__ = ["freeze_by_name"]

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def freeze_by_name(model: Any, args: StageArguments) -> None:
    """Freeze the parameters of `--freeze_layers` and `--freeze_parameters`.

    Raises:
        UsageError: There are fewer layers, a pattern fits no name, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = {name: int(found[1]) for name in names if part_of(name) == "language" and (found := LAYER.search(name))}
    num_layers = max(layers.values(), default=-1) + 1
    if args.freeze_layers > num_layers:
        raise UsageError(f"--freeze_layers {args.freeze_layers}: the model has {num_layers} layers.")
    patterns = [re.compile(text) for text in args.freeze_parameters]
    for pattern in patterns:
        if not any(pattern.search(name) for name in names):
            raise UsageError(f"--freeze_parameters {pattern.pattern}: matches no parameter. An example: {names[0]}.")
    for name, parameter in model.named_parameters():
        deep = name not in layers or layers[name] >= args.freeze_layers
        if not deep or any(pattern.search(name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("Nothing is left to train: freeze less with --freeze_layers and --freeze_parameters.")
