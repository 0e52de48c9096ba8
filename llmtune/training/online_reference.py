"""The reference model of an online stage, which computes beside the trained one during the whole run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file

from llmtune.distributed.collectives import wait_for_all
from llmtune.distributed.ranks import is_first
from llmtune.errors import CheckpointError
from llmtune.run.log import Decisions
from llmtune.training.preference import adapters_off
from llmtune.training.reference import load_reference
from llmtune.utils.files import publish, temporary_file

KEPT_FILE = "reference.safetensors"
"""File of the run folder: the trainable weights as the run began, where the model without them is not the reference."""

ReferenceModel: TypeAlias = Callable[[Any], contextlib.AbstractContextManager[Any]]
"""From the trained model to the context in which the reference computes; it gives the model to call."""


def reference_model(
    args: Any, model: Any, folder: Path, *, resumed: bool, decisions: Decisions
) -> ReferenceModel | None:
    """Return the reference of a run; None where its loss needs none.

    Args:
        model: As the run begins or resumes.
        folder: Of the run.

    Raises:
        CheckpointError: The weights that a resumed run began with are gone.
    """
    if not args.needs_reference:
        return None
    if args.reference is not None:
        decisions.fact("Reference", f"{args.reference}, a second model in memory")
        return _other(load_reference(args)[0])
    if args.sft_type != "full" and args.peft_path is None and args.lora_init == "default":
        decisions.fact("Reference", "the model without its adapter")
        return _without_adapter
    decisions.fact("Reference", "the model as the run began: its trainable weights are kept beside")
    return _as_it_began(_kept(model, folder / KEPT_FILE, resumed=resumed))


@contextlib.contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with adapters_off(model):
        yield model


def _other(other: Any) -> ReferenceModel:
    other.eval().requires_grad_(False)

    @contextlib.contextmanager
    def reference(model: Any) -> Iterator[Any]:
        with torch.no_grad():
            yield other

    return reference


def _kept(model: Any, file: Path, *, resumed: bool) -> dict[str, torch.Tensor]:
    if resumed:
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: the model that this run began with is its reference. Start anew."
            )
        return load_file(file)
    found = {name: one.detach().cpu().clone().contiguous() for name, one in _trainable(model).items()}
    if is_first():
        with temporary_file(file) as temporary:
            save_file(found, temporary)
            publish(temporary, file)
    wait_for_all()
    return found


def _trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def _as_it_began(kept: dict[str, torch.Tensor]) -> ReferenceModel:
    """Exchange the trainable weights for those of the beginning, and back again."""

    @contextlib.contextmanager
    def reference(model: Any) -> Iterator[Any]:
        own = _trainable(model)
        with torch.no_grad():
            now = {name: one.detach().clone() for name, one in own.items()}
            try:
                for name, one in own.items():
                    one.copy_(kept[name])
                yield model
            finally:
                for name, one in own.items():
                    one.copy_(now[name])

    return reference
