"""sft(): arguments -> rows -> tokens -> model -> tuner -> train -> report, top to bottom."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from llmtune.arguments.checks import check_sources
from llmtune.arguments.sft import SftArguments
from llmtune.data.canonical import from_record
from llmtune.inference.engine import Engine, Sampling
from llmtune.inference.metrics import text_metrics
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import dtype_name, get_model_tokenizer, resolve_dtype
from llmtune.training.callbacks import Interrupt, JsonLog, LastStep, Progress, Throughput
from llmtune.training.checkpoint import check_resumable, check_steps_left, last_checkpoint, link_last_state
from llmtune.training.collate import PaddingCollator
from llmtune.training.curves import draw_curves
from llmtune.training.loss import install_learned_loss
from llmtune.training.prepare import Prepared, prepare, total_steps
from llmtune.training.report import Report
from llmtune.training.run_folder import args_record, new_run_folder, write_metrics
from llmtune.training.trainer import SftTrainer
from llmtune.training.training_arguments import training_arguments
from llmtune.tuners.tune import count_parameters, prepare_tuner
from llmtune.types import Conversation
from llmtune.utils.files import ensure_writable_folder, write_json
from llmtune.utils.logging import get_logger
from llmtune.utils.quiet import quiet_libraries

__all__ = ["SftResult", "sft"]

REPORTED_GENERATIONS = 3
REPORTED_TOKENS = 48


@dataclass(frozen=True)
class SftResult:
    """What a run left behind.

    Attributes:
        output_dir: The run's folder.
        best_checkpoint: The checkpoint with the best evaluation; the last one where nothing was evaluated.
        last_checkpoint: The newest checkpoint; None where none was saved.
        metrics: Of training (`train_loss`, throughput) and of the last evaluation (`eval_loss`).
        interrupted: Whether Ctrl-C ended the run early.
    """

    output_dir: Path
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    metrics: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False


def sft(args: SftArguments) -> SftResult:
    """Fine-tune a model.

    Raises:
        LlmtuneError: Anything that can be explained: see `llmtune.errors`.
    """
    started = time.perf_counter()
    log = get_logger()
    check_sources(args)
    quiet_libraries()
    resume = check_resumable(Path(args.resume_from_checkpoint), args) if args.resume_from_checkpoint else None
    run_parent = Path(args.output_dir).expanduser() if resume is None else resume.parent
    ensure_writable_folder(run_parent, flag="--output_dir")
    decisions = _decisions(args)
    for line in decisions:
        log.info(line)
    for flag in args.unused_flags():
        log.warning("%s has no effect in this run.", flag)
    assert args.model_type is not None
    training_arguments(args, run_parent, has_validation=True)  # a typo in --train_args must not cost the encoding

    prepared = prepare(args)
    num_steps = total_steps(len(prepared.train_tokens), args)
    if resume is not None:
        check_steps_left(resume, num_steps)
    _tell_sample(prepared)

    set_seed(args.seed)
    model = load_for_training(args)
    model = prepare_tuner(model, args, prepared.info)
    install_learned_loss(model)
    trainable, parameters = count_parameters(model)
    log.info(
        "Parameters: %s, of which %s are trained (%.2f %%).",
        f"{parameters:,}",
        f"{trainable:,}",
        100 * trainable / parameters,
    )

    run = new_run_folder(args.output_dir, args.model_type) if resume is None else resume.parent
    log.info("Run folder: %s, %s steps", run, f"{num_steps:,}")
    throughput, interrupt = Throughput(), Interrupt()
    trainer = _trainer(args, prepared, model, run, throughput, interrupt)
    train_metrics = _train(trainer, resume, interrupt)

    last = last_checkpoint(run)
    best = Path(trainer.state.best_model_checkpoint) if trainer.state.best_model_checkpoint else last
    metrics = train_metrics | throughput.summary() | _last_evaluation(trainer)
    report = Report(
        title=f"{args.model_type}, {args.sft_type}",
        command=shlex.join(["llmtune", *sys.argv[1:]]) if sys.argv[0].endswith("llmtune") else shlex.join(sys.argv),
        decisions=decisions,
        data=prepared.train_tokens.report,
        trainable=trainable,
        parameters=parameters,
        seconds=time.perf_counter() - started,
        seconds_to_first_step=max(throughput.first_step - started, 0.0),
        throughput=throughput.summary(),
        best_checkpoint=str(best) if best else None,
        last_checkpoint=str(last) if last else None,
        interrupted=interrupt.asked,
        generations=[] if interrupt.asked else _generations(trainer.model, prepared),
    )
    _finish(run, report, metrics, last)
    log.info("Best checkpoint: %s", best)
    if best is not None:
        log.info("Talk to it:  llmtune infer --ckpt_dir %s --eval_human true", best)
    return SftResult(run, best, last, metrics, interrupt.asked)


def load_for_training(args: SftArguments) -> Any:
    """The model in the dtype that training needs: whole weights under fp16 stay fp32, and autocast does the rest."""
    assert args.model_type is not None
    dtype, reason = resolve_dtype(MODEL_MAPPING[args.model_type], args.dtype)
    log = get_logger()
    log.info("dtype: %s (%s).", dtype_name(dtype), reason)
    if args.sft_type == "full" and dtype is not torch.float32:
        text = "The weights are kept in fp32 and computed in %s, in which small updates would be lost."
        log.info(text, dtype_name(dtype))
        dtype = torch.float32
    options: dict[str, Any] = {}
    if args.use_flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    elif args.use_flash_attn is False:
        options["attn_implementation"] = "sdpa"
    model, _ = get_model_tokenizer(
        args.model_type,
        model_id_or_path=args.model_id_or_path,
        torch_dtype=dtype,
        load_tokenizer=False,
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        **options,
    )
    return model.to("cuda") if torch.cuda.is_available() else model


def _trainer(
    args: SftArguments, prepared: Prepared, model: Any, run: Path, throughput: Throughput, interrupt: Interrupt
) -> SftTrainer:
    has_validation = prepared.validation_tokens is not None
    arguments = training_arguments(args, run, has_validation=has_validation)
    record = args_record(args, dtype=dtype_name(resolve_dtype(prepared.info, args.dtype)[0]))
    write_json(run / "sft_args.json", record)
    write_json(run / "training_args.json", arguments.to_dict())
    generate = None
    if args.predict_with_generate and prepared.validation is not None:
        generate = lambda tuned: _generate_metrics(tuned, prepared, args)  # noqa: E731
    return SftTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.train_tokens,
        eval_dataset=prepared.validation_tokens,
        data_collator=PaddingCollator(prepared.tokenizer.pad_token_id),
        processing_class=prepared.tokenizer,
        callbacks=[throughput, JsonLog(run / "logging.jsonl", throughput), Progress(), LastStep(), interrupt],
        throughput=throughput,
        sft_args=record,
        longest_first=args.test_oom_error,
        generate_metrics=generate,
    )


def _train(trainer: SftTrainer, resume: Path | None, interrupt: Interrupt) -> dict[str, Any]:
    try:
        output = trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    finally:
        interrupt.restore()
    return dict(output.metrics)


def _last_evaluation(trainer: SftTrainer) -> dict[str, Any]:
    for record in reversed(trainer.state.log_history):
        if "eval_loss" in record:
            return {name: value for name, value in record.items() if name.startswith("eval_")}
    return {}


def _finish(run: Path, report: Report, metrics: dict[str, Any], last: Path | None) -> None:
    report.write(run)
    write_metrics(run, "train", {name: value for name, value in metrics.items() if not name.startswith("eval_")})
    evaluated = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    if evaluated:
        write_metrics(run, "eval", evaluated)
    draw_curves(run / "logging.jsonl", run / "images")
    if last is not None:
        link_last_state(last, run)


def _decisions(args: SftArguments) -> list[str]:
    """What was decided for the user, and why."""
    device = "the GPU" if torch.cuda.is_available() else "the CPU, since there is no GPU"
    lines = [f"Training runs on {device}."]
    lines.append(f"Model {args.model_type}, template {args.template_type}, {args.sft_type} fine-tuning.")
    if args.tuner_backend == "swift":
        lines.append("--tuner_backend swift is taken for peft.")
    lines.append(
        f"Learning rate {args.learning_rate:g}, {args.batch_size} x {args.gradient_accumulation_steps} samples a step."
    )
    return lines


def _tell_sample(prepared: Prepared) -> None:
    """The first sample as the model meets it, before anything is spent on training."""
    from llmtune.inspect.mask_view import to_ansi, token_views

    log = get_logger()
    tokens = prepared.train_tokens
    report = tokens.report
    lengths = tokens.lengths
    spread = f"{lengths.min()} to {lengths.max()} a sample, {lengths.mean():.0f} on average"
    log.info(f"{len(tokens):,} samples, {report.num_tokens:,} tokens ({report.num_learned:,} learned), {spread}.")
    first = tokens[0]
    cut = slice(0, 400)
    views = token_views(prepared.tokenizer, first["input_ids"][cut].tolist(), first["labels"][cut].tolist())
    log.info("The first sample, what is learned in brackets:\n%s", to_ansi(views, colour=False))


def _generate_metrics(model: Any, prepared: Prepared, args: SftArguments) -> dict[str, float]:
    assert prepared.validation is not None
    rows = [from_record(record) for record in prepared.validation]
    engine = Engine(model, prepared.template)
    answers = list(engine.answer(rows, Sampling.of(args), batch_size=args.eval_batch_size or 1))
    return text_metrics(answers, [_reference(row) for row in rows])


def _generations(model: Any, prepared: Prepared) -> list[tuple[str, str, str]]:
    source = prepared.validation if prepared.validation is not None else prepared.train
    rows = [from_record(source[index]) for index in range(min(REPORTED_GENERATIONS, len(source)))]
    rows = [row for row in rows if row.turns[0].role == "user"]
    answers = Engine(model, prepared.template).answer(
        rows, Sampling(max_new_tokens=REPORTED_TOKENS), batch_size=REPORTED_GENERATIONS
    )
    return [(_question(row), _reference(row), answer) for row, answer in zip(rows, answers, strict=True)]


def _question(row: Conversation) -> str:
    asked = [turn.content for turn in row.turns if turn.role != "assistant"]
    return asked[-1] if asked else ""


def _reference(row: Conversation) -> str:
    return row.turns[-1].content if row.turns[-1].role == "assistant" else ""
