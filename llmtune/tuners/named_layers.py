"""Check layer names in flags, and the adapter of --peft_path, against the model before rows are encoded."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.arguments.checks import is_name_pattern
from llmtune.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    adapter_folder,
    adapter_kind,
    checkpoint_kind,
    read_adapter_config,
)
from llmtune.errors import CheckpointError, LlmtuneError, UsageError
from llmtune.models.folder import module_names, read_header, tensor_shapes
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.registry import resolve_reference
from llmtune.tuners.targets import check_modules_to_save, ends_in, frozen_parts, target_modules

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


ADAPTER_MODULE = re.compile(r"^base_model\.model\.(.+?)\.(lora_[AB]|lora_embedding_[AB]|ia3_l|vera_lambda_[bd])(\.|$)")


def check_named_layers(args: StageArguments, folder: Path | None) -> None:
    """Refuse layer names that the model does not have.

    Names in its weight files are enough if they cover all; otherwise the model is built on the meta device.

    Args:
        folder: Of the model. None: an embedded model that was not built yet.

    Raises:
        UsageError: --lora_target_modules or --modules_to_save names a missing layer.
    """
    if args.sft_type == "full" or args.peft_path is not None:
        return
    targets = [name for name in args.lora_target_modules if name not in ("ALL", "DEFAULT")]
    if not targets and not args.modules_to_save:
        return
    if folder is not None:
        known = module_names(folder, trust_remote_code=args.trust_remote_code)
        if known is not None and all(_is_known(name, known) for name in [*targets, *args.modules_to_save]):
            return
        _check_on_meta(args, folder)
        return
    info = MODEL_MAPPING[str(args.model_type)]
    if info.get_folder is not None:
        with _made_elsewhere(info) as made:
            check_named_layers(args, made)


def _is_known(name: str, known: set[str]) -> bool:
    if is_name_pattern(name):
        return any(re.fullmatch(name, module) for module in known)
    return any(ends_in(module, name) for module in known)


def _check_on_meta(args: StageArguments, folder: Path) -> None:
    import torch
    from accelerate import init_empty_weights

    from llmtune.models.loading import from_config
    from llmtune.models.ports import native_config

    config = native_config(folder, trust_remote_code=args.trust_remote_code)
    with init_empty_weights():
        model = from_config(config, folder, torch.float32, args.trust_remote_code)
    model.name_or_path = str(folder)
    target_modules(model, args.lora_target_modules, MODEL_MAPPING[str(args.model_type)], frozen_parts(args))
    check_modules_to_save(model, args.modules_to_save)


@contextlib.contextmanager
def _made_elsewhere(info: ModelInfo) -> Iterator[Path]:
    """An embedded model, built in a temporary folder: a dry run writes nothing into the cache."""
    before = os.environ.get("LLMTUNE_CACHE")
    with tempfile.TemporaryDirectory() as place:
        os.environ["LLMTUNE_CACHE"] = place
        try:
            assert info.get_folder is not None
            yield Path(resolve_reference(info.get_folder, what="The get_folder of a model")())
        finally:
            del os.environ["LLMTUNE_CACHE"]
            if before is not None:
                os.environ["LLMTUNE_CACHE"] = before


def check_peft_path(args: StageArguments, folder: Path | None) -> None:
    """Refuse an adapter that is missing, of another kind, or of another model, by its files' names and shapes.

    Raises:
        CheckpointError: It is missing, incomplete, or does not fit. UsageError: --sft_type is not its kind, or a
            flag excludes it.
    """
    if args.peft_path is None:
        return
    place = Path(args.peft_path).expanduser()
    try:
        whole = checkpoint_kind(place) == "full"
    except CheckpointError as err:
        raise CheckpointError(f"--peft_path {args.peft_path}: {err}") from err
    if whole:
        raise UsageError(
            f"--peft_path {args.peft_path} has full weights, not an adapter: use it as --model_id_or_path."
        )
    kind = adapter_kind(place)
    if kind != args.sft_type:
        raise UsageError(f"--peft_path {args.peft_path} is another kind of adapter: use --sft_type {kind}.")
    inner = adapter_folder(place)
    file = inner / ADAPTER_FILE
    config = read_adapter_config(place)
    if not config:
        raise CheckpointError(f"{inner / ADAPTER_CONFIG} is damaged. Use another checkpoint of the run.")
    if args.fp8_base and config.get("use_dora"):
        raise UsageError(
            f"--peft_path {args.peft_path} is DoRA, which reads the base's weights in training, and --fp8_base true "
            "has them in fp8 alone: remove --fp8_base."
        )
    if not file.is_file():
        if (inner / "adapter_model.bin").is_file():
            return
        raise CheckpointError(f"{place} has no {file.name}, so it is incomplete. Use another checkpoint of the run.")
    try:
        names = {found[1] for name in read_header(file) if (found := ADAPTER_MODULE.match(name))}
        known = None if folder is None else module_names(folder, trust_remote_code=args.trust_remote_code)
        shapes = {} if folder is None else tensor_shapes(folder) or {}
    except LlmtuneError as err:
        raise CheckpointError(str(err)) from err
    if known is None or any(".experts." in name for name in shapes):
        return
    foreign = sorted(name for name in names if name not in known)
    if foreign:
        raise CheckpointError(
            f"The adapter in {place} does not fit the model: {len(foreign):,} of its layers are missing there, "
            f"e.g. {foreign[0]}. Was it trained on another model?"
        )
