"""Files of a run's model: found on this machine or on a hub, and checked against the flags. No weights, no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.errors import HubError, MissingPackageError, ModelError, UsageError
from llmtune.hub.clients import use_hf
from llmtune.models.folder import model_folder
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.quantization import check_prequantized

if TYPE_CHECKING:
    from llmtune.arguments.groups import ModelArguments


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Search hub downloads on this machine only."""
    before = os.environ.get("LLMTUNE_OFFLINE")
    os.environ["LLMTUNE_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LLMTUNE_OFFLINE"]
        else:
            os.environ["LLMTUNE_OFFLINE"] = before


@contextlib.contextmanager
def noted(lacks: list[str] | None) -> Iterator[None]:
    """Collect the message of a missing package; None: let it raise."""
    try:
        yield
    except MissingPackageError as err:
        if lacks is None:
            raise
        lacks.append(str(err))


@dataclass(frozen=True)
class ModelFiles:
    """Location of a model.

    Attributes:
        text: Description.
        folder: None if it is not on this machine, or is created when first needed.
    """

    text: str
    folder: Path | None


def find_model(
    args: ModelArguments,
    *,
    bits: int,
    sft_type: str | None,
    fp8_base: bool = False,
    lacks: list[str] | None = None,
) -> ModelFiles:
    """Find the folder of a model, with its configuration and tokenizer, and check that it can be used in this way.

    Args:
        bits: Of `--quantization_bit`. sft_type: What is trained; None: nothing. fp8_base: The base is rounded to fp8.
        lacks: Collects what is missing on this machine; nothing is then fetched or made. None: it is, or raises.

    Raises:
        ModelError: The folder of no model. UsageError: Its weights cannot be used in this way. HubError: It cannot be
            fetched. MissingPackageError: What its files need is not installed.
    """
    from llmtune.models.loading import check_requirements

    assert args.model_type is not None
    info = MODEL_MAPPING[args.model_type]
    if args.dtype is not None and info.torch_dtype not in (None, args.dtype):
        raise UsageError(f"{info.model_id_or_path} supports {info.torch_dtype} only: use --dtype {info.torch_dtype}.")
    with noted(lacks):
        check_requirements(args.model_type, info)
    if lacks is not None and info.get_folder is not None and args.model_id_or_path in (None, info.model_id_or_path):
        return ModelFiles("built by llmtune, no download", None)
    try:
        with contextlib.nullcontext() if lacks is None else no_network():
            folder = model_folder(info, args.model_id_or_path, hub=args.hub(), weights=lacks is not None)
    except HubError:
        if lacks is None:
            raise
        place = args.model_id_or_path or (info.hf_model_id if use_hf(args.use_hf) else info.model_id_or_path)
        hub = "Hugging Face" if use_hf(args.use_hf) else "ModelScope"
        return ModelFiles(f"{place} on {hub}, not on this machine: it would be downloaded", None)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    with noted(lacks):
        check_prequantized(folder, sft_type=sft_type, quantization_bit=bits, fp8_base=fp8_base)
    return ModelFiles(str(folder), folder)
