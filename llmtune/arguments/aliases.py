"""Flags of other tools, translated to ours.

HF: transformers' TrainingArguments and example scripts. Q: Qwen's finetune.py. M: MedicalGPT's scripts. S: ms-swift.
L: LLaMA-Factory. Each is accepted; one log line lists the translations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtune.errors import UsageError
from llmtune.models.dtypes import TORCH_NAMES, dtype_name

Tokens = list[tuple[str, list[str]]]
"""Flags without their dashes, each with its values."""


@dataclass(frozen=True, slots=True)
class Alias:
    """One flag of another tool.

    Attributes:
        target: Our flag, where the value stays as it is.
        convert: The values to our flags, where it does not; raises ValueError for a value without a meaning here.
        ignored: Why the flag has no effect here.
        silent: An old spelling of our own, not logged.
    """

    target: str = ""
    convert: Callable[[list[str]], Tokens] | None = None
    ignored: str = ""
    silent: bool = False


def translate(flag: str, values: list[str]) -> tuple[Tokens, str]:
    """Our flags for one of theirs, and the note for the log ("" for our own).

    Raises:
        UsageError: The value has no meaning here.
    """
    alias = ALIASES.get(flag)
    if alias is None:
        return [(flag, values)], ""
    if alias.ignored:
        return [], f"--{flag} ({alias.ignored})"
    if alias.convert is None:
        return [(alias.target, values)], "" if alias.silent else f"--{flag} -> --{alias.target}"
    try:
        tokens = alias.convert(values)
    except IndexError:
        raise UsageError(f"--{flag}: expected one argument.") from None
    except ValueError as err:
        raise UsageError(f"--{flag} {' '.join(values)}: {err}") from err
    meaning = " ".join(f"--{name} {' '.join(given)}".strip() for name, given in tokens) or "the default"
    return tokens, f"{' '.join(['--' + flag, *values])} -> {meaning}"


def add_lengths(tokens: Tokens) -> Tokens:
    """Sum up the two limits of M, for the prompt and the response, into one max_length.

    Raises:
        UsageError: One of the two is missing or is not a number.
    """
    given = {flag: (values or [""])[0] for flag, values in tokens if flag in _LENGTHS}
    if not given:
        return tokens
    try:
        total = sum(int(given[name]) for name in _LENGTHS)
    except (KeyError, ValueError) as err:
        shown = " ".join(f"--{flag} {value}".strip() for flag, value in given.items())
        raise UsageError(f"{shown}: give both {' and '.join('--' + n for n in _LENGTHS)}, or --max_length N.") from err
    return [token for token in tokens if token[0] not in _LENGTHS] + [("max_length", [str(total)])]


def join_dataset_names(tokens: Tokens) -> Tokens:
    """Join M's two flags for a Hugging Face dataset and its subset into one item, `hf::name:subset`.

    Raises:
        UsageError: The subset without the dataset.
    """
    given = {flag: values for flag, values in tokens if flag in _DATASET_NAMES}
    if not given:
        return tokens
    name, part = ((given.get(flag) or [""])[0] for flag in _DATASET_NAMES)
    if not name:
        raise UsageError(f"--dataset_config_name {part} is a subset: give its dataset with --dataset_name.")
    from llmtune.data.info import DATASET_MAPPING

    known = name in DATASET_MAPPING or Path(name).expanduser().exists()
    item = name if known else f"hf::{name}"
    tokens = [token for token in tokens if token[0] not in _DATASET_NAMES]
    return [*tokens, ("dataset", [f"{item}:{part}" if part else item])]


def _is_true(values: list[str]) -> bool:
    text = (values or ["true"])[0].lower()
    if text in ("true", "1", "yes"):
        return True
    if text in ("false", "0", "no"):
        return False
    raise ValueError("expected true or false")


def _dtype(values: list[str]) -> Tokens:
    name = dtype_name((values or [""])[0])
    if name in ("auto", "None"):
        return []
    if name not in TORCH_NAMES:
        raise ValueError("expected float16, bfloat16, float32 or auto")
    return [("dtype", [name])]


def _when_true(*tokens: tuple[str, str]) -> Callable[[list[str]], Tokens]:
    return lambda values: [(name, [value]) for name, value in tokens] if _is_true(values) else []


def _use_lora(values: list[str]) -> Tokens:
    return [("sft_type", ["lora" if _is_true(values) else "full"])]


def _target_modules(values: list[str]) -> Tokens:
    names = [name for value in values for name in value.replace(" ", ",").split(",") if name]
    if [name.lower() for name in names] in (["all"], ["all-linear"]):
        return [("lora_target_modules", ["ALL"])]
    return [("lora_target_modules", names if any(" " in value for value in values) else values)]


def _percentage(values: list[str]) -> Tokens:
    return [("dataset_test_ratio", [str(float(values[0]) / 100)])]


def _loss_scale(values: list[str]) -> Tokens:
    names = {"default": "auto", "last_round": "last", "all": "everything"}
    if values[0] not in names:
        raise ValueError("expected default, last_round or all")
    return [("loss_on", [names[values[0]]])]


def _finetuning_type(values: list[str]) -> Tokens:
    if values[0] not in ("lora", "full"):
        raise ValueError("expected lora or full")
    return [("sft_type", values)]


def _lora_init(values: list[str]) -> Tokens:
    names = {"true": "default", "default": "default", "pissa": "pissa", "olora": "olora"}
    text = (values or ["true"])[0].lower()
    if text not in names:
        raise ValueError("expected true, pissa or olora")
    return [("lora_init", [names[text]])]


def _checkpointing(values: list[str]) -> Tokens:
    if values and values[0].lower() in ("auto", "full", "selective", "none"):
        return [("gradient_checkpointing", [values[0].lower(), *values[1:]])]
    return [("gradient_checkpointing", ["full" if _is_true(values) else "none"])]


def _stage(values: list[str]) -> Tokens:
    if values != ["sft"]:
        raise ValueError("only stage sft is available, as `llmtune sft`; others are planned for a later version")
    return []


def _flash_attn(values: list[str]) -> Tokens:
    names = {"fa2": "true", "sdpa": "false", "disabled": "false"}
    return [] if values == ["auto"] else [("use_flash_attn", [names.get(value, value) for value in values])]


def _model_type(values: list[str]) -> Tokens:
    return [] if values == ["auto"] else [("model_type", values)]


def _optim(values: list[str]) -> Tokens:
    return [] if values == ["adamw_hf"] else [("optim", values)]


def _train_arg(name: str) -> Alias:
    return Alias(convert=lambda values: [("train_args", [f"{name}={(values or ['true'])[0]}"])])


_DATASET_NAMES = ("dataset_name", "dataset_config_name")
_LENGTHS = ("max_source_length", "max_target_length")
_OURS = {
    "tuner_bankend": "tuner_backend",
    "dataset_split_seed": "dataset_seed",
    "use_streamer": "stream",
    "nproc_per_node": "nproc",
    "overwrite_generation_config": "save_generation_config",
}
_RENAMED = {
    # HF
    "model_name_or_path": "model_id_or_path",
    "hf_hub_token": "hub_token",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "evaluation_strategy": "eval_strategy",
    "deepspeed": "deepspeed_config_path",
    # Q, M
    "data_path": "dataset",
    "eval_data_path": "val_dataset",
    "train_file_dir": "dataset",
    "validation_file_dir": "val_dataset",
    "max_train_samples": "train_dataset_sample",
    "max_eval_samples": "val_dataset_sample",
    "template_name": "template_type",
    "base_model": "model_id_or_path",
    "lora_model": "ckpt_dir",
    "format": "to",
    "tokenizer_name_or_path": "tokenizer_id_or_path",
    "tokenizer_path": "tokenizer_id_or_path",
    "model_max_length": "max_length",
    "block_size": "max_length",
    "lora_r": "lora_rank",
    "lora_dropout": "lora_dropout_p",
    "lora_weight_path": "peft_path",
    "loraplus_lr_ratio": "lorap_lr_ratio",
    "neft_alpha": "neftune_noise_alpha",
    # S, L
    "model": "model_id_or_path",
    "tuner_type": "sft_type",
    "train_type": "sft_type",
    "split_dataset_ratio": "dataset_test_ratio",
    "adapters": "ckpt_dir",
    "cutoff_len": "max_length",
    "image_max_pixels": "max_pixels",
    "freeze_vision_tower": "freeze_vit",
    "freeze_multi_modal_projector": "freeze_aligner",
    "template": "template_type",
    "agent_template": "tool_format",
    "use_liger_kernel": "use_liger",
    "enable_liger_kernel": "use_liger",
    "dataset_dir": "dataset",
}
_CONVERTED: dict[str, Callable[[list[str]], Tokens]] = {
    "torch_dtype": _dtype,
    "bf16": _when_true(("dtype", "bf16")),
    "fp16": _when_true(("dtype", "fp16")),
    "use_lora": _use_lora,
    "use_peft": _use_lora,
    "q_lora": _when_true(("sft_type", "lora"), ("quantization_bit", "4")),
    "qlora": _when_true(("sft_type", "lora"), ("quantization_bit", "4")),
    "load_in_4bit": _when_true(("quantization_bit", "4")),
    "load_in_8bit": _when_true(("quantization_bit", "8")),
    "train_on_inputs": _when_true(("loss_on", "everything")),
    "target_modules": _target_modules,
    "lora_target": _target_modules,
    "lora_target_modules": _target_modules,
    "validation_split_percentage": _percentage,
    "loss_scale": _loss_scale,
    "finetuning_type": _finetuning_type,
    "stage": _stage,
    "flash_attn": _flash_attn,
    "init_lora_weights": _lora_init,
    "init_weights": _lora_init,
    "model_type": _model_type,
    "optim": _optim,
    "gradient_checkpointing": _checkpointing,
    "add_version": lambda values: [("output_dir_flat", [str(not _is_true(values)).lower()])],
    "add_output_dir_suffix": lambda values: [("output_dir_flat", [str(not _is_true(values)).lower()])],
    "activation_checkpointing": _checkpointing,
}
_TRAIN_ARGS = [
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "run_name",
    "ddp_timeout",
    "ddp_find_unused_parameters",
    "logging_first_step",
    "logging_strategy",
]
_NO_EFFECT = {
    "do_train": "the command itself says so",
    "do_eval": "evaluation runs whenever there is validation data",
    "overwrite_output_dir": "every run has its own folder",
    "remove_unused_columns": "only the columns that the model needs are passed on",
    "ignore_pad_token_for_loss": "padding never contributes to the loss",
    "use_fast_tokenizer": "fast tokenizers are always used",
    "preprocessing_num_workers": "the tokenizer's own threads are used",
    "dataset_num_proc": "the tokenizer's own threads are used",
    "lazy_preprocess": "rows are encoded once and cached; --streaming true encodes them during training",
    "lazy_tokenize": "rows are encoded once and cached; --streaming true encodes them during training",
    "logging_dir": "curves are written to runs/ in the run folder",
}

ALIASES: dict[str, Alias] = {
    **{theirs: Alias(target=ours) for theirs, ours in _RENAMED.items()},
    **{theirs: Alias(target=ours, silent=True) for theirs, ours in _OURS.items()},
    **{theirs: Alias(convert=convert) for theirs, convert in _CONVERTED.items()},
    **{theirs: _train_arg(theirs) for theirs in _TRAIN_ARGS},
    **{theirs: Alias(ignored=reason) for theirs, reason in _NO_EFFECT.items()},
}
