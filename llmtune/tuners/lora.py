"""Adapters through PEFT: LoRA and its initialisations, LoRA+, and those of a checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmtune.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE, adapter_folder
from llmtune.errors import CheckpointError, one_line
from llmtune.models.heads import task_type
from llmtune.models.whole_weights import names_text
from llmtune.tuners.targets import check_modules_to_save, frozen_parts, target_modules, target_parameters
from llmtune.tuners.vocabulary import grow_for_adapter, token_indices
from llmtune.utils.files import read_json, write_json

if TYPE_CHECKING:
    from peft import PeftConfig

    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo


def add_lora(model: Any, args: StageArguments, info: ModelInfo, new_token_ids: Sequence[int] = ()) -> Any:
    """Add LoRA to the layers of `--lora_target_modules`; everything else is frozen.

    Adapter weights are fp32 if the base is in half precision.
    """
    from peft import LoraConfig

    targets = target_modules(model, args.lora_target_modules, info, frozen_parts(args))
    check_modules_to_save(model, args.modules_to_save)
    config = LoraConfig(
        task_type=task_type(model),
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout_p,
        bias=args.lora_bias,
        target_modules=targets,
        target_parameters=target_parameters(model, args) or None,
        modules_to_save=args.modules_to_save or None,
        trainable_token_indices=token_indices(model, new_token_ids),
        use_rslora=args.use_rslora,
        use_dora=args.use_dora,
        init_lora_weights=True if args.lora_init == "default" else args.lora_init,
    )
    tuned = attach(model, config)
    return tuned if args.lora_init == "default" else save_as_difference(tuned)


def attach(model: Any, config: PeftConfig) -> Any:
    """Add fresh adapters of any PEFT kind to the model."""
    from peft import get_peft_model

    return _saving_adapters_alone(get_peft_model(model, config))


def load_adapter(model: Any, folder: Path, *, is_trainable: bool = False, name: str = "default") -> Any:
    """Load the adapters of a PEFT folder onto their base model, besides those that it has.

    Raises:
        CheckpointError: The folder is missing, incomplete or of another model.
    """
    from peft import PeftModel

    folder = _adapter_folder(folder)
    try:
        if isinstance(model, PeftModel):
            report = model.load_adapter(str(folder), adapter_name=name, is_trainable=is_trainable)
            check_adapter(model, folder, name=name, report=report)
            return model
        grow_for_adapter(model, folder)
        with warnings.catch_warnings():
            # upstream: peft 0.21.2 peft/peft_model.py: warns of missing tensors, on which check_adapter raises
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=is_trainable)
        check_adapter(loaded, folder, name=name)
        return _saving_adapters_alone(loaded)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, KeyError) as err:
        text = one_line(err)
        raise CheckpointError(
            f"The adapter in {folder} does not fit the model: was it trained on another model? ({text})"
        ) from err
    except Exception as err:  # safetensors' own error type derives from Exception
        raise CheckpointError(f"The adapter in {folder} cannot be read; a file may be truncated: {err}") from err


def _adapter_folder(folder: Path) -> Path:
    """Return the folder of the adapter's files."""
    if not folder.is_dir():
        raise CheckpointError(f"There is no adapter folder {folder}.")
    folder = adapter_folder(folder)
    for names in ((ADAPTER_CONFIG,), (ADAPTER_FILE, "adapter_model.bin")):
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(
                f"{folder} has no {names[0]}, so it is incomplete. Use another checkpoint of the run."
            )
    return folder


def _saving_adapters_alone(tuned: Any) -> Any:
    """Keep embeddings out of the checkpoints."""
    # upstream: peft 0.21.2 peft/utils/save_and_load.py: adds embeddings where a config of 2023 has no vocab_size
    tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)
    return tuned


# PiSSA and OLoRA initialise adapters from the base weights, and subtract that part from the base.
#
# A checkpoint holds the difference to that beginning as a plain LoRA adapter of twice the rank, for the base as it was:
# `W - B0 A0 + B A` is `W + [B, -B0] [A; A0]`. Both halves are in the file, so that a run can be resumed from it.


Beginning = dict[str, tuple[Tensor, Tensor]]
"""A0 and B0 of each adapted layer, by the layer's full name."""


def save_as_difference(tuned: Any) -> Any:
    """Make checkpoints of a PiSSA or OLoRA model fit the original base, and resumable."""
    beginning = {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in _layers(tuned).items()
    }
    # upstream: peft 0.21.2 peft/peft_model.py: save_pretrained needs a saved initial adapter, and cannot be resumed
    tuned.save_pretrained = partial(_save, tuned, tuned.save_pretrained, beginning)
    # upstream: peft 0.21.2 no issue: load_adapter does not restore the base weights of that run
    tuned.load_adapter = partial(_resume, tuned, beginning)
    return tuned


def _layers(tuned: Any) -> dict[str, Any]:
    return {name: module for name, module in tuned.named_modules() if "default" in getattr(module, "lora_A", {})}


def _save(tuned: Any, own_save: Any, beginning: Beginning, folder: str, **options: Any) -> None:
    from safetensors.torch import load_file, save_file

    own_save(folder, **options)
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, (down, up) in beginning.items():
        for part, tensor, axis in (("lora_A", down, 0), ("lora_B", -up, 1)):
            key = f"{name}.{part}.weight"
            tensors[key] = torch.cat([tensors[key], tensor.to(tensors[key])], axis).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    config_file = Path(folder) / ADAPTER_CONFIG
    config = read_json(config_file)
    growth = math.sqrt(2) if config["use_rslora"] else 2  # the scale, alpha by rank or by its root, must stay
    config |= {"init_lora_weights": True, "r": config["r"] * 2, "lora_alpha": config["lora_alpha"] * growth}
    write_json(config_file, config)


def _resume(tuned: Any, beginning: Beginning, folder: str, *_: Any, **__: Any) -> None:
    """Load trained adapters and their initial values from a checkpoint, and restore the base of that run."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    for name, layer in _layers(tuned).items():
        try:
            downs, ups = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        except KeyError as err:
            raise CheckpointError(f"{folder} has no adapter for {name}: resume with the flags of that run.") from err
        rank = layer.r["default"]
        if len(downs) != 2 * rank:
            raise CheckpointError(f"{folder} is of --lora_rank {len(downs) // 2}, and this run of {rank}.")
        weight = layer.get_base_layer().weight
        here, there = beginning[name], (downs[rank:].to(weight.device), -ups[:, rank:].to(weight.device))
        change = layer.scaling["default"] * (here[1] @ here[0] - there[1] @ there[0])
        weight.data += change.to(weight.dtype)
        beginning[name] = there
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = downs[:rank], ups[:, :rank]
    set_peft_model_state_dict(tuned, tensors)


# Completeness: tensors that PEFT left at their initial values, or ignored, are an error


SHARED = ("vera_A", "vera_B")
"""VeRA's random matrices: regenerated from the configuration if a file was saved without them."""


def check_adapter(model: Any, folder: Path, *, name: str = "default", report: Any = None) -> None:
    """Compare the adapter `name` in the model with the tensors in its file.

    Args:
        model: With the adapter loaded.
        report: What PEFT's `load_adapter` returned, where that is known; it also knows of tensors that PEFT renames.

    Raises:
        CheckpointError: A tensor of the adapter is in no file, or one in the file has no place in the model.
    """
    from peft import get_peft_model_state_dict

    saved = _names_in(folder)
    wanted = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if report is not None and not saved & wanted:  # PEFT has other names for all of them, those of an older version
        missing, unused = set(report.missing_keys), set(report.unexpected_keys)
    else:
        missing, unused = wanted - saved, saved - wanted
    missing = {one for one in missing if not one.endswith(SHARED)}
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing):,} tensors that they need ({names_text(sorted(missing))})")
    if unused:
        parts.append(f"{len(unused):,} of its tensors have no place in them ({names_text(sorted(unused))})")
    if parts:
        raise CheckpointError(
            f"The adapter in {folder} does not fit the model and its adapter_config.json: {' and '.join(parts)}. "
            "Was it trained on another model, or is it incomplete? Use another checkpoint of the run."
        )


def _names_in(folder: Path) -> set[str]:
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    return set(torch.load(folder / "adapter_model.bin", map_location="meta", weights_only=True))
