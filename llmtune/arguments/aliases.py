"""Flags of other tools, translated to ours; and the fields of TrainingArguments that `--train_args` takes.

HF: transformers' TrainingArguments and example scripts. trl: its configs. Q: Qwen's finetune.py. M: MedicalGPT's
scripts. S: ms-swift. L: LLaMA-Factory. Each is accepted; one log line lists the translations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments import aliases_llama_factory as llama_factory
from llmtune.arguments import aliases_online as online
from llmtune.errors import UsageError
from llmtune.models.dtypes import TORCH_NAMES, dtype_name

Tokens = list[tuple[str, list[str]]]
"""Flags without their dashes, each with its values."""
Converter = Callable[[list[str]], Tokens]


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
    convert: Converter | None = None
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


def add_lengths(tokens: Tokens, *, online: bool = False) -> Tokens:
    """Sum up the two limits of M, for the prompt and the response, into one max_length.

    Args:
        online: The response is sampled, and its limit is max_new_tokens.

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
    found = [token for token in tokens if token[0] not in _LENGTHS] + [("max_length", [str(total)])]
    return [*found, ("max_new_tokens", [given[_LENGTHS[1]]])] if online else found


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


def join_loss_weights(tokens: Tokens) -> Tokens:
    """Join trl's list of weights with the list of losses, `sigmoid*1.0 sft*0.2`.

    Raises:
        UsageError: There are more or fewer weights than losses.
    """
    given = dict(tokens)
    weights, losses = given.get("loss_weights"), given.get("loss", [])
    if weights is None:
        return tokens
    if len(weights) != len(losses):
        raise UsageError(
            f"--loss_weights has {len(weights)} weights for {len(losses)} losses. Write --loss key*weight."
        )
    joined = [f"{loss}*{weight}" for loss, weight in zip(losses, weights, strict=True)]
    return [("loss", joined) if flag == "loss" else (flag, one) for flag, one in tokens if flag != "loss_weights"]


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


def _when_true(*tokens: tuple[str, str]) -> Converter:
    return lambda values: [(name, [value]) for name, value in tokens] if _is_true(values) else []


def _use_lora(values: list[str]) -> Tokens:
    return [("sft_type", ["lora" if _is_true(values) else "full"])]


def _target_modules(values: list[str]) -> Tokens:
    names = [name for value in values for name in value.replace(" ", ",").split(",") if name]
    if [name.lower() for name in names] in (["all"], ["all-linear"]):
        return [("lora_target_modules", ["ALL"])]
    return [("lora_target_modules", names if any(" " in value for value in values) else values)]


def _one_of(flag: str, names: dict[str, str], expected: str, *, empty: str | None = None) -> Converter:
    """Translate a value by a table. `empty`: the value of a flag without one; None: it needs one."""

    def convert(values: list[str]) -> Tokens:
        text = (values or [empty] if empty else values)[0].lower()
        if text not in names:
            raise ValueError(f"expected {expected}")
        return [(flag, [names[text]])]

    return convert


def _unless(flag: str, without_effect: str) -> Converter:
    return lambda values: [] if values == [without_effect] else [(flag, values)]


def _checkpointing(values: list[str]) -> Tokens:
    if values and values[0].lower() in ("auto", "full", "selective", "none"):
        return [("gradient_checkpointing", [values[0].lower(), *values[1:]])]
    return [("gradient_checkpointing", ["full" if _is_true(values) else "none"])]


def _switch(flag: str) -> Converter:
    """A switch with an `auto` beside true and false; alone, it is true."""
    return lambda values: [(flag, ["auto" if values == ["auto"] else str(_is_true(values)).lower()])]


def _stage(values: list[str]) -> Tokens:
    if values != ["sft"]:
        raise ValueError("the stage is the command: llmtune dpo, say, or llmtune train --stage dpo")
    return []


def _pref_loss(values: list[str]) -> Tokens:
    if values == ["kto_pair"]:
        raise ValueError("pairs are trained as labelled responses by `llmtune kto`")
    return [("loss", values)]


def _flash_attn(values: list[str]) -> Tokens:
    names = {"fa2": "true", "sdpa": "false", "disabled": "false"}
    return [] if values == ["auto"] else [("use_flash_attn", [names.get(value, value) for value in values])]


def _train_arg(name: str) -> Alias:
    return Alias(convert=lambda values: [("train_args", [f"{name}={(values or ['true'])[0]}"])])


OF_CHECKPOINTS = {"peft_path": "ckpt_dir"}
"""Flags of training, and their names in the commands that read a checkpoint."""
_DATASET_NAMES = ("dataset_name", "dataset_config_name")
_LENGTHS = ("max_source_length", "max_target_length")
_OURS = {
    "tuner_bankend": "tuner_backend",
    "dataset_split_seed": "dataset_seed",
    "use_streamer": "stream",
    "nproc_per_node": "nproc",
    "overwrite_generation_config": "save_generation_config",
}
_lora_init = _one_of(
    "lora_init",
    {"true": "default", "default": "default", "pissa": "pissa", "olora": "olora"},
    "true, pissa or olora",
    empty="true",
)
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
    # Preferences: trl, S, L, M
    "ref_adapters": "reference",
    "ref_model": "reference",
    "ref_model_name_or_path": "reference",
    "loss_type": "loss",
    "pref_beta": "beta",
    "orpo_beta": "beta",
    "dpo_label_smoothing": "label_smoothing",
    "rpo_alpha": "sft_weight",
    "pref_ftx": "sft_weight",
    "simpo_gamma": "gamma",
    "cpo_alpha": "alpha",
    "discopop_tau": "tau",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "center_rewards_coefficient": "centring",
    "sft_model_path": "model_id_or_path",
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
    "preprocessing_num_workers": "dataset_num_proc",
}
_CONVERTED: dict[str, Converter] = {
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
    "validation_split_percentage": lambda values: [("dataset_test_ratio", [str(float(values[0]) / 100)])],
    "loss_scale": _one_of(
        "loss_on", {"default": "auto", "last_round": "last", "all": "everything"}, "default, last_round or all"
    ),
    "finetuning_type": _one_of("sft_type", {"lora": "lora", "full": "full"}, "lora or full"),
    "stage": _stage,
    "pref_loss": _pref_loss,
    "flash_attn": _flash_attn,
    **dict.fromkeys(("init_lora_weights", "init_weights"), _lora_init),
    "model_type": _unless("model_type", "auto"),
    "optim": _unless("optim", "adamw_hf"),
    "gradient_checkpointing": _checkpointing,
    "padding_free": _switch("padding_free"),
    "share_prompt": _switch("share_prompt"),
    **dict.fromkeys(
        ("add_version", "add_output_dir_suffix"),
        lambda values: [("output_dir_flat", [str(not _is_true(values)).lower()])],
    ),
    "activation_checkpointing": _checkpointing,
}
_TRAIN_ARGS = [
    "warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
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
    "lazy_preprocess": "rows are encoded once and cached; --streaming true encodes them during training",
    "lazy_tokenize": "rows are encoded once and cached; --streaming true encodes them during training",
    "logging_dir": "curves are written to runs/ in the run folder",
    "precompute_ref_log_probs": "the reference is always computed once, before the first step",
    "max_prompt_length": "the oldest turns of a prompt are removed until it fits --max_length with its responses",
}

ALIASES: dict[str, Alias] = {
    **{theirs: Alias(target=ours) for theirs, ours in (_RENAMED | online.RENAMED | llama_factory.RENAMED).items()},
    **{theirs: Alias(target=ours, silent=True) for theirs, ours in _OURS.items()},
    **{
        theirs: Alias(convert=convert)
        for theirs, convert in (_CONVERTED | online.CONVERTED | llama_factory.CONVERTED).items()
    },
    **{theirs: _train_arg(theirs) for theirs in _TRAIN_ARGS},
    **{
        theirs: Alias(ignored=reason)
        for theirs, reason in (_NO_EFFECT | online.NO_EFFECT | llama_factory.NO_EFFECT).items()
    },
}


# Fields of transformers' TrainingArguments


BY_FLAG = {
    **dict.fromkeys(("output_dir", "seed", "num_train_epochs", "max_steps", "gradient_accumulation_steps")),
    **dict.fromkeys(("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm")),
    **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers", "eval_strategy", "eval_steps", "report_to")),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "logging_steps", "ddp_backend")),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "torch_compile", "fsdp")),
    **dict.fromkeys(
        ("resume_from_checkpoint", "gradient_checkpointing", "warmup_ratio", "group_by_length", "run_name")
    ),
    "data_seed": "seed",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "save_only_model": "only_save_model",
    "bf16": "dtype",
    "fp16": "dtype",
    "use_liger_kernel": "use_liger",
    "deepspeed": "deepspeed_config_path",
    "fsdp_config": "fsdp",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "hub_strategy": "push_hub_strategy",
    "train_sampling_strategy": "group_by_length",
    "evaluation_strategy": "eval_strategy",
}
"""Field -> our flag; None: a flag of the same name."""
BY_US = frozenset((
    *("remove_unused_columns", "label_names", "prediction_loss_only", "disable_tqdm", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "logging_nan_inf_filter", "average_tokens_across_devices"),
    *("use_cache", "ignore_data_skip", "accelerator_config", "use_cpu", "liger_kernel_config", "do_train", "do_eval"),
    *("do_predict", "logging_dir", "overwrite_output_dir", "include_for_metrics", "batch_eval_metrics"),
    *("auto_find_batch_size", "past_index", "local_rank", "parallelism_config", "eval_do_concat_batches"),
    *("label_smoothing_factor", "fp16_full_eval", "bf16_full_eval", "length_column_name"),
))  # fmt: skip
"""Fields that llmtune sets itself, or that its own loss and sampler replace."""
OTHERS = frozenset((
    *("dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "ddp_broadcast_buffers", "ddp_bucket_cap_mb"),
    *("ddp_static_graph", "debug", "enable_jit_checkpoint", "eval_accumulation_steps", "eval_delay", "eval_on_start"),
    *("eval_use_gather_object", "full_determinism", "hub_always_push", "hub_revision", "include_num_input_tokens_seen"),
    *("log_level", "log_level_replica", "log_on_each_node", "lr_scheduler_kwargs", "optim_args"),
    *("optim_target_modules", "project", "restore_callback_states_from_checkpoint", "save_on_each_node"),
    *("skip_memory_metrics", "tf32", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
    *("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
))  # fmt: skip
"""All other fields: set by --train_args only."""


def unknown_flag_hint(flag: str) -> str:
    """How to set a field of TrainingArguments that has no flag of ours; "" if there is no such field."""
    if flag in OTHERS:
        return f"it is a field of transformers' TrainingArguments: use --train_args {flag}=VALUE."
    if flag in BY_US or flag in BY_FLAG:
        reason = not_by_train_args(flag)
        return f"it is a field of transformers' TrainingArguments that --train_args does not take: {reason}"
    return ""


def not_by_train_args(name: str) -> str:
    """Why --train_args does not take a field, and what to do; "" if it does."""
    if name in BY_FLAG:
        return f"use --{BY_FLAG[name] or name} instead."
    if name in BY_US:
        return "llmtune sets it itself; remove it."
    alias = ALIASES.get(name)
    if alias is not None and alias.target:
        return f"use --{alias.target} instead."
    return ""
