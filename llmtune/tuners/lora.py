"""LoRA through PEFT: which layers, fresh adapters or those of a checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.checks import is_name_pattern
from llmtune.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE, adapter_folder
from llmtune.errors import CheckpointError, UsageError, one_line
from llmtune.models.ports import native_target_modules, read_config
from llmtune.models.quantization import is_linear
from llmtune.tuners.experts import ROUTERS, expert_parameters, target_parameters
from llmtune.tuners.mutated import save_as_difference
from llmtune.tuners.parts import Part, frozen_parts, is_vision_model, trained_linears
from llmtune.tuners.vocabulary import grow_for_adapter, token_indices
from llmtune.tuners.whole_adapter import check_adapter
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import TrainingArguments

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
        task_type="CAUSAL_LM",
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
        with _without_warnings():
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


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide the warning of missing tensors, on which `check_adapter` raises."""
    with warnings.catch_warnings():
        # upstream: peft 0.21.2 peft/peft_model.py: warns of missing tensors, on which check_adapter raises
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


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


def target_modules(
    model: Any, wanted: list[str], info: ModelInfo, frozen: frozenset[Part] = frozenset({"vit", "aligner"})
) -> list[str]:
    """Names of the layers to adapt. ALL: every linear layer but the head; DEFAULT or nothing: the entry's.

    Vision models get full names, since their parts share the last ones (`q_proj`); PEFT shortens them.

    Args:
        frozen: Parts of such a model that are left alone whatever the names say.

    Raises:
        UsageError: A name that no linear layer has, or a regular expression that matches none.
    """
    patterns = [name for name in wanted if is_name_pattern(name)]
    if patterns:
        return _matched(model, patterns, [name for name in wanted if name not in patterns])
    if is_vision_model(model):
        names = None if wanted == ["ALL"] else _last_names(model, wanted, info)
        return list(trained_linears(model, names, frozen))
    return _last_names(model, wanted, info)


def _matched(model: Any, patterns: list[str], others: list[str]) -> list[str]:
    """Full names of the linear layers that a pattern matches entirely, and of those that end in a name."""
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matched = [name for name in linear if re.fullmatch(pattern, name)]
        except re.error as err:
            raise UsageError(f"--lora_target_modules {pattern!r} is not a valid regular expression: {err}.") from err
        if not matched:
            raise UsageError(
                f"--lora_target_modules {pattern!r} matches no linear layer by its full name. An example: {linear[0]}."
            )
        found |= dict.fromkeys(matched)
    if missing := _missing(model, others):
        raise UsageError(_no_such_layer(model, "--lora_target_modules", missing))
    found |= dict.fromkeys(name for name in linear for one in others if f".{name}".endswith(f".{one}"))
    return list(found)


def check_modules_to_save(model: Any, names: list[str]) -> None:
    """Refuse missing layers, which PEFT ignores.

    Raises:
        UsageError: No module of the model has the name.
    """
    if missing := _missing(model, names):
        raise UsageError(_no_such_layer(model, "--modules_to_save", missing))


def _no_such_layer(model: Any, flag: str, missing: list[str]) -> str:
    fused = list(dict.fromkeys(name.rpartition(".")[2] for name in expert_parameters(model)))
    if flag == "--modules_to_save":
        holding = [
            name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
        ]
        names = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in holding))
        return f"{flag} {' '.join(missing)}: the model has no such layer. Its layers are {', '.join(names)}."
    return (
        f"{flag} {' '.join(missing)}: the model has no such layer. "
        f"Its linear layers are {', '.join(dict.fromkeys([*linear_names(model), *fused]))}; ALL adapts all of them."
    )


def _last_names(model: Any, wanted: list[str], info: ModelInfo) -> list[str]:
    names = linear_names(model)
    if wanted == ["ALL"]:
        return names
    if wanted in ([], ["DEFAULT"]):
        wanted = list(info.lora_target_modules)
        if not wanted:
            get_logger().info(f"LoRA: the model entry names no layers; adapting all linear ones: {', '.join(names)}.")
            return names
    fused = list(dict.fromkeys(name.rpartition(".")[2] for name in expert_parameters(model)))
    wanted = [name for name in wanted if name not in fused or not _missing(model, [name])]
    missing = _missing(model, wanted)
    if missing:  # a checkpoint of 2023 on a native class: its fused layers have other names there
        native = list(native_target_modules(read_config(model.name_or_path), wanted))
        if not _missing(model, native):
            get_logger().info(f"LoRA: {', '.join(wanted)} of the original checkpoint are {', '.join(native)} here.")
            return native
    if missing:
        raise UsageError(_no_such_layer(model, "--lora_target_modules", missing))
    return wanted


def _missing(model: Any, names: list[str]) -> list[str]:
    modules = [name for name, _ in model.named_modules()]
    return [name for name in names if not any(f".{module}".endswith(f".{name}") for module in modules)]


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the head, in the model's order."""
    head = model.get_output_embeddings()
    routers = ROUTERS if expert_parameters(model) else frozenset()
    found = [
        name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module) and module is not head
    ]
    return [name for name in dict.fromkeys(found) if name not in routers]


# LoRA+: a higher learning rate for the adapters' B matrices (arXiv 2402.12354)


def loraplus_optimizer(model: Any, arguments: TrainingArguments, ratio: float) -> torch.optim.Optimizer:
    """Return the optimizer of `arguments`, with `ratio` times the learning rate for the B matrices."""
    from peft.optimizers import create_loraplus_optimizer
    from transformers import Trainer

    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    options["loraplus_weight_decay"] = arguments.weight_decay
    return create_loraplus_optimizer(model, optimizer_class, loraplus_lr_ratio=ratio, **options)
