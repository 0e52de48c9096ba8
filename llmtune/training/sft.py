"""sft(): arguments -> rows -> tokens -> model -> tuner -> train -> report, top to bottom."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from llmtune.arguments.checks import parse_train_args
from llmtune.arguments.sft import SftArguments
from llmtune.checkpoint import set_aside_later, write_settings
from llmtune.distributed.collectives import broadcast_from_rank0
from llmtune.distributed.locks import first_on_this_machine
from llmtune.distributed.ranks import is_distributed, is_first, launch_id, world_size
from llmtune.models.flops import model_flops
from llmtune.models.loading import dtype_name, resolve_dtype
from llmtune.models.packing_check import check_isolation, takes_one_sequence
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.planning.auto import resolve_checkpointing
from llmtune.run.folder import args_record, new_run_folder, remove_leftovers
from llmtune.run.lock import RunLock
from llmtune.run.log import Decisions
from llmtune.run.report import device_name
from llmtune.run.resume import check_same_data, check_steps_left
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.identity import data_identity
from llmtune.samples.positions import note_positions
from llmtune.samples.prepare import Prepared, prepare, steps_per_epoch, total_steps
from llmtune.samples.sampler import Numbered, sample_order
from llmtune.samples.streaming import PLACE_FILE, RestoreRandomness, StreamedSamples
from llmtune.training.answers import answer_metrics
from llmtune.training.before import preflight
from llmtune.training.build import build_model
from llmtune.training.callbacks import FollowArguments, Interrupt, JsonLog, LastStep, Progress
from llmtune.training.first_look import log_data
from llmtune.training.kernels import compile_layers, note_kernels
from llmtune.training.loss_watch import LossWatch
from llmtune.training.outcome import SftResult, last_evaluation, leave_report, result_of
from llmtune.training.push import hub_push
from llmtune.training.strategy import AtStart, ShowRun, build_training_arguments
from llmtune.training.throughput import Throughput
from llmtune.training.trackers import placed_trackers
from llmtune.training.trainer import SftTrainer
from llmtune.training.training_arguments import checkpoint_activations
from llmtune.tuners.adalora import AllocateRanks
from llmtune.tuners.loraplus import loraplus_optimizer
from llmtune.utils.files import read_json, write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.quiet import quiet_libraries

__all__ = ["SftResult", "sft"]


def sft(args: SftArguments) -> SftResult:
    """Fine-tune a model.

    Raises:
        LlmtuneError: Any foreseen failure: see `llmtune.errors`.
    """
    with RunLock() as lock:
        return _sft(args, lock)


def _sft(args: SftArguments, lock: RunLock) -> SftResult:
    started = time.perf_counter()
    quiet_libraries()
    args, resume = preflight(args)
    if resume is not None and is_first():
        lock.take(resume.parent)
    decisions = _first_decisions(args)
    push = hub_push(args) if is_first() else None
    with first_on_this_machine("data"):
        prepared = prepare(args)
    num_steps = _num_steps(prepared, args)
    if resume is not None:
        check_steps_left(resume, num_steps)
        check_same_data(resume, data_identity(prepared))
    log_data(prepared, args, decisions)
    note_positions(prepared, args)
    arguments = build_training_arguments(args, has_validation=prepared.validation_tokens is not None)
    args = broadcast_from_rank0(resolve_checkpointing(args, prepared, decisions) if is_first() else None)
    checkpoint_activations(arguments, args)
    model = build_model(args, prepared.info, decisions, num_steps, prepared.ids_of(args.new_special_tokens))
    if not has_sharded_weights(model):
        _check_rows_apart(args, prepared, model)
    compile_layers(model, args, decisions)
    run = broadcast_from_rank0(_run_folder(args, resume, lock) if is_first() else None)
    arguments.output_dir = str(run)
    if "run_name" not in parse_train_args(args.train_args):
        arguments.run_name = run.name
    _note_steps(decisions, args, arguments, prepared, num_steps, resume)
    decisions.fact("Run folder", str(run))
    throughput, interrupt = Throughput(model_flops(model), since=started), Interrupt()
    trainer = _trainer(args, arguments, prepared, model, throughput, interrupt)
    note_kernels(model, args, decisions)
    if resume is not None and isinstance(prepared.train_set, StreamedSamples):
        prepared.train_set.go_on_from(read_json(resume / PLACE_FILE))
        trainer.add_callback(RestoreRandomness(trainer, resume))
    if resume is not None:
        trainer.add_callback(FollowArguments(resume))
    trainer.add_callback(ShowRun(trainer, decisions))
    if has_sharded_weights(model):  # only now can they be gathered to try it
        trainer.add_callback(AtStart(lambda: _check_rows_apart(args, prepared, trainer.model)))
    if push is not None:
        trainer.add_callback(push)
    with placed_trackers(args.report_to, run):
        metrics = _train(trainer, resume, interrupt)
    metrics |= throughput.summary() | last_evaluation(trainer)
    result = result_of(trainer, run, metrics, interrupt)
    leave_report(result, prepared, trainer, decisions, throughput, started)
    if push is not None:
        push.finish(result.last_checkpoint)
    return result


def _num_steps(prepared: Prepared, args: SftArguments) -> int:
    items = prepared.train_set
    return args.max_steps if isinstance(items, StreamedSamples) else total_steps(len(items), args)


def _run_folder(args: SftArguments, resume: Path | None, lock: RunLock) -> Path:
    if resume is None:
        run = new_run_folder(args.output_dir, args.display_name(), flat=args.output_dir_flat)
    else:
        run = resume.parent
    lock.take(run)
    remove_leftovers(run)
    if resume is not None:
        set_aside_later(resume)
    return run


def _first_decisions(args: SftArguments) -> Decisions:
    decisions = Decisions()
    decisions.fact("Model", f"{args.display_name()}, template {args.template_type}")
    decisions.choose("Device", device_name(), "" if torch.cuda.is_available() else "there is no GPU")
    decisions.fact("Training", _training_text(args))
    if args.tuner_backend == "swift":
        decisions.choose("Tuner backend", "peft", "--tuner_backend swift means peft")
    for flag in args.unused_flags():
        get_logger().warning(f"{flag} has no effect in this run.")
    return decisions


def _training_text(args: SftArguments) -> str:
    if args.sft_type == "full":
        return "full fine-tuning"
    if args.sft_type == "ia3":
        return "ia3 adapter"
    scale = f", alpha {args.lora_alpha}" if args.sft_type in ("lora", "adalora") else ""
    return f"{args.sft_type} adapter, rank {args.lora_rank}{scale}"


def _note_steps(
    decisions: Decisions,
    args: SftArguments,
    arguments: TrainingArguments,
    prepared: Prepared,
    num_steps: int,
    resume: Path | None,
) -> None:
    """Note batch arithmetic, steps and schedule."""
    unit = "packs" if args.packing else "samples"
    many = f" x {world_size()} processes" if is_distributed() else ""
    factors = f"{args.batch_size} per device x {args.gradient_accumulation_steps} accumulation{many}"
    decisions.fact("Batch", f"{args.step_size():,} {unit} per optimizer step ({factors})")
    items = prepared.train_set
    epochs = (
        "" if isinstance(items, StreamedSamples) else f" ({num_steps / steps_per_epoch(len(items), args):.3g} epochs)"
    )
    text = f"{num_steps:,}{epochs}" if resume is None else f"{num_steps:,}{epochs}, resuming from {resume.name}"
    warmup = arguments.get_warmup_steps(num_steps)
    schedule = f"{arguments.lr_scheduler_type.value}, {warmup:,} warmup step{'' if warmup == 1 else 's'}"
    decisions.fact("Steps", f"{text}; learning rate {args.learning_rate:g}, {schedule}")
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    clipping = f"gradient norm clipped to {args.max_grad_norm:g}" if args.max_grad_norm else "no gradient clipping"
    decisions.fact("Optimizer", f"{optimizer}, weight decay {args.weight_decay:g}, {clipping}")
    kept = "all kept" if args.save_total_limit == -1 else f"{args.save_total_limit} kept"
    saves = _interval(args.save_strategy, args.save_steps)
    evaluates = "never" if prepared.validation_tokens is None else _interval(args.eval_strategy, args.eval_steps)
    decisions.fact("Checkpoints", f"saved {saves}, {kept}; evaluated {evaluates}")


def _interval(strategy: str, steps: int | None) -> str:
    if strategy == "no":
        return "never"
    return "every epoch" if strategy == "epoch" else f"every {steps:,} steps and at the end"


def _trainer(
    args: SftArguments,
    arguments: TrainingArguments,
    prepared: Prepared,
    model: Any,
    throughput: Throughput,
    interrupt: Interrupt,
) -> SftTrainer:
    run = Path(arguments.output_dir)
    record = args_record(
        args,
        _launch=launch_id(),
        _data=data_identity(prepared),
        dtype=dtype_name(resolve_dtype(prepared.info, args.dtype)[0]),
    )
    if is_first():
        write_settings(run, record)
        write_json(run / "training_args.json", arguments.to_dict())
    optimizer = None
    if args.lorap_lr_ratio is not None and args.sft_type == "lora":
        optimizer = loraplus_optimizer(model, arguments, args.lorap_lr_ratio)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    watch = LossWatch(args.on_nan, max(vocab_size, len(prepared.tokenizer)), prepared.describe)
    callbacks = [
        throughput,
        JsonLog(run / "logging.jsonl", throughput),
        Progress(throughput),
        LastStep(),
        interrupt,
        watch,
    ]
    if args.sft_type == "adalora":
        callbacks.append(AllocateRanks())
    generates = args.predict_with_generate and prepared.validation is not None
    padding = prepared.tokenizer.pad_token_id
    train_set = prepared.train_set
    return SftTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set if isinstance(train_set, StreamedSamples) else Numbered(train_set, padding),
        eval_dataset=None if prepared.validation_set is None else Numbered(prepared.validation_set, padding),
        data_collator=_collator(args, prepared, model),
        processing_class=prepared.tokenizer,
        callbacks=callbacks,
        throughput=throughput,
        sft_args=record,
        optimizers=(optimizer, None),
        watch=watch,
        order=sample_order(args),
        async_save=args.async_save,
        keep=args.save_total_limit if args.save_total_limit > 0 else None,
        changed=args.changed_on_resume,
        generate_metrics=(lambda tuned: answer_metrics(tuned, prepared, args)) if generates else None,
    )


def _check_rows_apart(args: SftArguments, prepared: Prepared, model: Any) -> None:
    if args.packing or args.padding_free:
        stores = [store for store in (prepared.train_tokens, prepared.validation_tokens) if store is not None]
        longest = max(int(store.lengths.max()) for store in stores)
        check_isolation(model, "--packing" if args.packing else "--padding_free", longest=longest)
        if args.neftune_noise_alpha:
            text = "NEFTune's noise shrinks with the sequence length, which packing increases: raise %s."
            get_logger().warning(text, "--neftune_noise_alpha")


def _collator(args: SftArguments, prepared: Prepared, model: Any) -> PackingCollator | PaddingCollator:
    padding = prepared.tokenizer.pad_token_id
    if not (args.packing or args.padding_free):
        return PaddingCollator(padding, prepared.template.images)
    one_sequence = takes_one_sequence(model)
    return PackingCollator(padding, flat=args.padding_free or one_sequence, with_segments=one_sequence)


def _train(trainer: SftTrainer, resume: Path | None, interrupt: Interrupt) -> dict[str, Any]:
    try:
        output = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        trainer.finish_saving()
    finally:
        interrupt.restore()
    return dict(output.metrics)
