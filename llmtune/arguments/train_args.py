"""`--train_args`: fields of transformers' TrainingArguments, and those that have a flag of ours instead."""

from __future__ import annotations

from llmtune.arguments.aliases import ALIASES

BY_FLAG = {
    **dict.fromkeys(("output_dir", "seed", "num_train_epochs", "max_steps", "gradient_accumulation_steps")),
    **dict.fromkeys(("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm")),
    **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers", "eval_strategy", "eval_steps", "report_to")),
    **dict.fromkeys(("save_strategy", "save_steps", "save_total_limit", "logging_steps", "ddp_backend")),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_private_repo", "hub_token", "torch_compile", "fsdp")),
    **dict.fromkeys(("resume_from_checkpoint", "gradient_checkpointing", "warmup_ratio", "group_by_length")),
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
