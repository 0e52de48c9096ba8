"""The output of `llmtune sft --dry_run true`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments.stage import StageArguments
from llmtune.cli import dry_run
from llmtune.distributed.deepspeed import deepspeed_file, read_deepspeed, zero_stage
from llmtune.distributed.launch import is_handed_over, planned_processes, torchrun_arguments
from llmtune.distributed.ranks import world_size
from llmtune.errors import OutputError
from llmtune.models.attention import best_flash
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.ports.load import native_target_modules
from llmtune.run.resolved import Run


def show_sft(args: StageArguments) -> None:
    """Print the run that these arguments ask for.

    Raises:
        LlmtuneError: Whatever would stop the run before weights are loaded, as far as local files show it.
    """
    run = Run.resolve(args, offline=True)
    args = run.args
    rows = {
        "model": f"{args.display_name()}, {run.model.text}",
        "template": f"{args.template_type}" + (f", system {args.system!r}" if args.system else ""),
        "training": _training(args),
        "target modules": _targets(args, dry_run.config_of(run.model)),
        "dtype": dry_run.dtype_text(args),
        "quantisation": dry_run.quantization_text(args) if args.quantization_bit else "",
        **dry_run.data_rows(args, args),
        "rows": _rows(args),
        "processes": _processes(args),
        "launch": _launch(args),
        "DeepSpeed": _deepspeed(args),
        "per step": _step(args),
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type}, warmup ratio {args.warmup_ratio:.3g}",
        **({"steps": f"{args.max_steps:,}"} if args.max_steps > 0 else {"epochs": f"{args.num_train_epochs:g}"}),
        "gradient checkpointing": args.gradient_checkpointing,
        "evaluation": f"every {args.eval_steps} steps; saved every {args.save_steps}"
        f", {args.save_total_limit} kept{', weights only' if args.only_save_model else ''}",
        "resumes from": _resume(args, run.resume),
        "output": _output(args),
    }
    dry_run.show({name: text for name, text in rows.items() if text}, _notes(args, run.lacks))


def _training(args: StageArguments) -> str:
    if args.sft_type == "full":
        return "all weights"
    text = f"{args.sft_type} adapters, rank {args.lora_rank}, alpha {args.lora_alpha}, dropout {args.lora_dropout_p:g}"
    return text if args.peft_path is None else f"{text}, from {args.peft_path}"


def _targets(args: StageArguments, config: Any) -> str:
    if args.sft_type == "full":
        return ""
    given = args.lora_target_modules
    if given == ["ALL"]:
        return "ALL: every linear layer but the LM head"
    names = given if given and given != ["DEFAULT"] else MODEL_MAPPING[str(args.model_type)].lora_target_modules
    whose = "" if given and given != ["DEFAULT"] else " (the model entry's)"
    if not names:
        return "the model's linear layers, known once it is built"
    natives = native_target_modules(config, names) if config else tuple(names)
    native = f", loaded as {' '.join(natives)}" if natives != tuple(names) else ""
    return " ".join(names) + whose + native


def _rows(args: StageArguments) -> str:
    sample = "all" if args.train_dataset_sample == -1 else f"up to {args.train_dataset_sample:,}"
    length = "any length" if args.max_length == -1 else f"up to {args.max_length:,} tokens each"
    part = "--val_dataset" if args.val_dataset else f"{args.dataset_test_ratio:g} of each dataset"
    return f"{sample}, {length}{', packed' if args.packing else ''}; validation {part}"


def _processes(args: StageArguments) -> str:
    devices = ", several devices each" if args.device_map else ""
    backend = f", backend {args.ddp_backend}" if args.ddp_backend else ""
    if is_handed_over(args.nproc, os.environ):
        number = str(args.nproc) if args.nproc else "one per GPU"
        machines = os.environ.get("NNODES", "1")
        return f"{number}{f' per machine, {machines} machines' if machines != '1' else ''}{devices}{backend}"
    return f"{world_size()}{devices}{backend}"


def _launch(args: StageArguments) -> str:
    """The torchrun command that `--nproc` becomes, without the flags, which may hold a token."""
    if not is_handed_over(args.nproc, os.environ):
        return ""
    return " ".join(["torchrun", *torchrun_arguments(args.nproc, args.max_restarts, os.environ), "-m llmtune sft ..."])


def _deepspeed(args: StageArguments) -> str:
    if args.deepspeed_config_path is None:
        return ""
    file = deepspeed_file(args.deepspeed_config_path)
    assert file is not None
    zero = read_deepspeed(file).get("zero_optimization", {})
    moved = [name.partition("_")[2] for name in ("offload_optimizer", "offload_param") if zero.get(name)]
    offload = f", offloads {' and '.join(moved)}" if moved else ""
    return f"ZeRO-{zero_stage(args.deepspeed_config_path)}{offload}, {file}"


def _step(args: StageArguments) -> str:
    what = "packs" if args.packing else "samples"
    factors = f"{args.batch_size} x {args.gradient_accumulation_steps}"
    processes = planned_processes(args.nproc, os.environ)
    if processes is None:
        return f"{factors} {what} per GPU"
    many = f" x {processes} processes" if processes > 1 else ""
    return f"{args.batch_size * args.gradient_accumulation_steps * processes:,} {what} ({factors}{many})"


def _resume(args: StageArguments, checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return str(checkpoint)
    return "nothing: no run has a checkpoint yet" if args.resume_from_checkpoint else ""


def _output(args: StageArguments) -> str:
    folder = Path(args.output_dir).expanduser().resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OutputError(f"Cannot write into {there}. Give a writable folder with --output_dir.")
    return str(folder) if args.output_dir_flat else str(folder / args.display_name() / "vN-TIME")


def _notes(args: StageArguments, lacks: Sequence[str]) -> list[str]:
    notes = [f"missing here: {text}" for text in lacks]
    if args.use_flash_attn and best_flash() is None:
        notes.append(
            "--use_flash_attn true: no FlashAttention package is installed; the run would use another attention."
        )
    if unused := args.unused_flags():
        notes.append(f"no effect in this run: {', '.join(unused)}.")
    return notes
