"""The arguments of a run as transformers' TrainingArguments, which bring its processes together."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llmtune.arguments.checks import parse_train_args
from llmtune.arguments.stage import StageArguments
from llmtune.distributed.deepspeed import (
    deepspeed_config,
    leave_unimported,
    need_deepspeed,
    ready_deepspeed,
    zero_stage,
)
from llmtune.distributed.fsdp import fsdp_fields, let_cpus_shard
from llmtune.distributed.ranks import is_distributed
from llmtune.errors import UsageError, one_line
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.layers import LIGER_SETTINGS, checkpointing_kwargs
from llmtune.run.optimizer import optimizer_fields
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger

BELOW_ONE = 1 - 1e-9
"""A warmup ratio of 1: the number 1 would mean one step."""


def training_arguments(args: StageArguments, run: Path, *, has_validation: bool) -> TrainingArguments:
    """Translate the arguments of a run.

    Raises:
        UsageError: `--train_args` names no field of TrainingArguments, or has an invalid value.
    """
    extra = parse_train_args(args.train_args)
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"--train_args {name}: transformers' TrainingArguments has no such field.{hint}")
    try:
        arguments = TrainingArguments(**(_fields(args, run, has_validation) | extra))
        if arguments.n_gpu > 1:
            # upstream: transformers 5.23.0 transformers/trainer.py: would wrap the model in DataParallel
            arguments._n_gpu = 1
        return arguments
    except (TypeError, ValueError) as err:
        raise UsageError(f"transformers rejects these settings: {one_line(err)}") from err


def _fields(args: StageArguments, run: Path, has_validation: bool) -> dict[str, Any]:
    assert args.model_type is not None
    on_cpu = not accelerator().is_gpu
    dtype, _ = resolve_dtype(MODEL_MAPPING[args.model_type], args.dtype)
    if on_cpu and dtype is torch.float16 and args.sft_type == "full":
        raise UsageError("--dtype fp16 with --sft_type full needs a GPU. On a CPU, use bf16 or fp32.")
    evaluates = has_validation and args.eval_strategy != "no"
    saves = args.save_strategy != "no"
    return {
        "output_dir": str(run),
        "seed": args.seed,
        "data_seed": args.seed,
        "use_cpu": on_cpu,
        **_processes(args),
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16 and not on_cpu,
        "per_device_train_batch_size": args.batch_size,
        "per_device_eval_batch_size": args.eval_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_train_epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type,
        "warmup_steps": min(args.warmup_ratio, BELOW_ONE),  # below 1 it is a fraction of the steps
        **optimizer_fields(args),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "use_cache": True,  # else Trainer would write use_cache: false into the checkpoint's config.json
        "neftune_noise_alpha": args.neftune_noise_alpha,
        **_loading(args, on_cpu),
        "dataloader_pin_memory": accelerator().pins_memory,
        "eval_strategy": args.eval_strategy if evaluates else "no",
        "eval_steps": args.eval_steps,
        "save_strategy": args.save_strategy,
        "save_steps": args.save_steps,
        "save_total_limit": None,  # rotation is ours: at 1, upstream would delete the last checkpoint at the end
        "save_only_model": bool(args.only_save_model),
        "load_best_model_at_end": False,
        "metric_for_best_model": _best_metric(args) if evaluates and saves else None,
        "greater_is_better": _best_metric(args) != "eval_loss" if evaluates and saves else None,
        "logging_steps": args.logging_steps,
        "logging_nan_inf_filter": False,
        "average_tokens_across_devices": True,
        "use_liger_kernel": args.use_liger,
        "liger_kernel_config": LIGER_SETTINGS if args.use_liger else None,
        "report_to": [target for target in args.report_to if target != "none"],
        "disable_tqdm": True,  # the progress bar is ours
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "prediction_loss_only": True,
    }


def _loading(args: StageArguments, on_cpu: bool) -> dict[str, Any]:
    if args.streaming:  # its own thread prefetches; it tracks its position, and each rank takes its part
        shares = {"dispatch_batches": False, "split_batches": False}
        return {"dataloader_num_workers": 0, "ignore_data_skip": True, "accelerator_config": shares}
    one_on_cpu = on_cpu and args.dataloader_num_workers == 1
    return {"dataloader_num_workers": 0 if one_on_cpu else args.dataloader_num_workers}


def _processes(args: StageArguments) -> dict[str, Any]:
    fields: dict[str, Any] = {**fsdp_fields(args)}
    if args.deepspeed_config_path is not None:
        fields["deepspeed"] = deepspeed_config(args.deepspeed_config_path, only_save_model=args.only_save_model)
    if not is_distributed():
        return fields
    fields["ddp_backend"] = args.ddp_backend or accelerator().backend
    # A trained vision tower may get a batch without images; no other trainable parameter stays unused.
    fields["ddp_find_unused_parameters"] = not (args.freeze_vit and args.freeze_aligner)
    if args.fp8_base:  # half of its weights are buffers, which DDP would send before every forward pass
        fields["ddp_broadcast_buffers"] = False
    return fields


def checkpoint_activations(arguments: TrainingArguments, args: StageArguments) -> None:
    """Set the resolved `--gradient_checkpointing` in TrainingArguments."""
    if args.gradient_checkpointing == "none":
        return
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    # transformers 5.23 renamed it; the former name goes in version 6
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    setattr(arguments, name, True)
    setattr(arguments, f"{name}_kwargs", checkpointing_kwargs(args.gradient_checkpointing))


def _best_metric(args: StageArguments) -> str:
    if args.KIND == "prompts":
        return "eval_reward"
    return "eval_rouge-l" if args.predict_with_generate else "eval_loss"


def check_processes(args: StageArguments) -> None:
    """Refuse a strategy that these processes cannot run, before any work.

    Raises:
        UsageError: Too few processes. MissingPackageError: deepspeed is asked for and not installed.
    """
    if args.deepspeed_config_path is not None:
        need_deepspeed()
    if args.ddp_backend == "gloo" and args.quantization_bit and accelerator().is_gpu:
        raise UsageError(
            "--ddp_backend gloo does not work with --quantization_bit on GPUs, "
            f"which need {accelerator().backend}: remove it."
        )
    if not is_distributed():
        if args.nproc != 1:
            raise UsageError(
                f"--nproc {args.nproc} is for the command llmtune sft, which starts the processes. From Python, "
                f"run your script with torchrun --nproc_per_node {args.nproc or 'gpu'}."
            )
        if args.fsdp:
            raise UsageError("--fsdp shards a model over processes, and there is only one: use --nproc 2 or more.")
        if args.ddp_backend is not None:
            get_logger().warning("--ddp_backend has no effect in this run: there is one process.")
        if args.deepspeed_config_path is None:  # else it would set up its processes before the data is ready
            training_arguments(args, Path(args.output_dir), has_validation=True)


def build_training_arguments(args: StageArguments, *, has_validation: bool) -> TrainingArguments:
    """Build TrainingArguments in all processes together; from here on they wait for each other, with a timeout.

    Raises:
        UsageError: transformers refuses the settings.
    """
    on_cpu = not accelerator().is_gpu
    if args.device_map is not None and is_distributed():
        # upstream: accelerate 1.15.0 accelerate/accelerator.py: refuses DDP for a model on several devices
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"
    if args.fsdp and on_cpu:
        let_cpus_shard()
        if args.fsdp_offload:
            get_logger().warning("--fsdp_offload has no effect in this run: there is no GPU to offload from.")
    if args.deepspeed_config_path is not None:
        ready_deepspeed()
    leave_unimported()
    arguments = training_arguments(args, Path(args.output_dir), has_validation=has_validation)
    accelerator().select(arguments.device)
    if zero_stage(args.deepspeed_config_path) == 3:
        import deepspeed

        # upstream: deepspeed 0.19.8 deepspeed/runtime/zero/partition_parameters.py: else shards over one process
        deepspeed.init_distributed(dist_backend=args.ddp_backend or accelerator().backend)
    return arguments


# `--report_to`: trackers, with the project names and folders of the run


PROJECT = "llmtune"


@contextlib.contextmanager
def placed_trackers(report_to: Sequence[str], run: Path) -> Iterator[None]:
    """Set the trackers' environment variables that the user has not set; only within the block.

    Local files of a tracker go into the run folder. Its credentials are in its own environment or login, and llmtune
    never reads them.
    """
    chosen = {
        "wandb": {"WANDB_PROJECT": PROJECT, "WANDB_DIR": str(run)},
        "swanlab": {"SWANLAB_PROJECT": PROJECT, "SWANLAB_LOG_DIR": str(run / "swanlab")},
        "mlflow": {"MLFLOW_EXPERIMENT_NAME": PROJECT, **_mlflow_place(run)},
        "trackio": {"TRACKIO_PROJECT": PROJECT, "TRACKIO_DIR": str(run / "trackio")},
    }
    wanted = {name: value for tracker in report_to for name, value in chosen.get(tracker, {}).items()}
    ours = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _mlflow_place(run: Path) -> dict[str, str]:
    """A local file store, which mlflow must be allowed explicitly; the user's tracking URI takes precedence."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return {}
    return {"MLFLOW_TRACKING_URI": str(run / "mlruns"), "MLFLOW_ALLOW_FILE_STORE": "true"}
