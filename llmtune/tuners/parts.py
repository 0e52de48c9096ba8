"""The parts of a vision model: language model, vision tower and projector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from llmtune.errors import UsageError

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


Part = Literal["language", "vit", "aligner"]

# Names of modules in transformers' classes. The projector may be inside the tower, as in Qwen.
ALIGNER = frozenset({"merger", "deepstack_merger_list", "multi_modal_projector"})
VIT = frozenset({"visual", "vision_tower", "vision_model"})


def part_of(name: str) -> Part:
    """Return the part of a module or parameter, by its full name."""
    names = set(name.split("."))
    return "aligner" if names & ALIGNER else "vit" if names & VIT else "language"


def is_vision_model(model: Any) -> bool:
    return any(part_of(name) != "language" for name, _ in model.named_modules())


def frozen_parts(args: StageArguments) -> frozenset[Part]:
    """Return the parts that `--freeze_vit` and `--freeze_aligner` freeze."""
    flags: tuple[tuple[Part, bool], ...] = (("vit", args.freeze_vit), ("aligner", args.freeze_aligner))
    return frozenset(part for part, frozen in flags if frozen)


def freeze_parts(model: Any, frozen: frozenset[Part]) -> None:
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)


def trained_linears(model: Any, wanted: list[str] | None, frozen: frozenset[Part]) -> Iterator[str]:
    """Return the full names of the linear layers that LoRA adapts: of parts that are not frozen, without the head.

    `wanted`: endings of the names of layers in the language model; None takes all. Those of the other parts are all
    taken: they have names of their own.
    """
    from llmtune.models.quantization import is_linear

    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if not is_linear(module) or module is head or part_of(name) in frozen:
            continue
        if part_of(name) != "language" or wanted is None or any(f".{name}".endswith(f".{one}") for one in wanted):
            yield name


# Partial full fine-tuning: the first layers, or parameters by name, are frozen


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
