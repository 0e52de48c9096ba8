"""Results of a run: its checkpoints, report, metrics and curves."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.checkpoint import last_checkpoint, link_last_state
from llmtune.distributed.ranks import is_first
from llmtune.models.heads import is_reward_model
from llmtune.run.curves import draw_curves
from llmtune.run.folder import write_metrics
from llmtune.run.log import Decisions
from llmtune.run.report import Report
from llmtune.run.shown import run_html
from llmtune.samples.blocks import blocks_text
from llmtune.samples.packing import packs_text
from llmtune.samples.prepare import Prepared
from llmtune.training.callbacks import Interrupt
from llmtune.training.generation_eval import sample_answers
from llmtune.training.throughput import Throughput
from llmtune.training.trainer import StageTrainer
from llmtune.tuners.tune import count_parameters
from llmtune.utils.logging import get_logger


@dataclass(frozen=True)
class SftResult:
    """Result of a run.

    Attributes:
        output_dir: The run folder.
        best_checkpoint: The checkpoint with the best evaluation; None if nothing was evaluated.
        last_checkpoint: The newest checkpoint; None if none was saved.
        checkpoint: The best one, else the last.
        metrics: Of training (`train_loss`, throughput) and of the last evaluation (`eval_loss`).
        interrupted: The signal that ended the run early (Ctrl-C, SIGTERM); empty otherwise.
    """

    output_dir: Path
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    metrics: dict[str, Any] = field(default_factory=dict)
    interrupted: str = ""

    @property
    def checkpoint(self) -> Path | None:
        return self.best_checkpoint or self.last_checkpoint

    def _repr_html_(self) -> str:
        """The run in a notebook: metrics, checkpoints, curves, a few responses."""
        facts = {
            "run": self.output_dir,
            "best checkpoint": self.best_checkpoint or f"none: {_why_none_is_best(self)}",
            "last checkpoint": self.last_checkpoint or "none",
            **({"interrupted": self.interrupted} if self.interrupted else {}),
        }
        return run_html(self.output_dir, facts, self.metrics)


def last_evaluation(trainer: StageTrainer) -> dict[str, Any]:
    """Metrics of the newest evaluation."""
    for record in reversed(trainer.state.log_history):
        if "eval_loss" in record or "eval_reward" in record:
            return {name: value for name, value in record.items() if name.startswith("eval_")}
    return {}


def result_of(trainer: StageTrainer, run: Path, metrics: dict[str, Any], interrupt: Interrupt) -> SftResult:
    """Return the result of a run that has ended."""
    last = trainer.last_saved or last_checkpoint(run)
    best = trainer.best_checkpoint()
    return SftResult(run, best, last, metrics, interrupt.asked)


def leave_report(
    result: SftResult,
    prepared: Prepared,
    trainer: StageTrainer,
    decisions: Decisions,
    throughput: Throughput,
    started: float,
    watched: tuple[int, list[dict[str, Any]]],
) -> None:
    """Write report, metrics and curves, and log the checkpoints.

    Args:
        started: By `time.perf_counter`.
        watched: The step of the last responses to the first validation rows, and their records.
    """
    run, metrics = result.output_dir, result.metrics
    scores = is_reward_model(trainer.model)
    step, records = watched
    known = records if step == trainer.state.global_step else []
    generations = [] if result.interrupted or scores else sample_answers(trainer.model, prepared, known)
    if not is_first():
        return
    trainable, parameters = count_parameters(trainer.model)
    called_as_command = sys.argv[0].endswith("llmtune")
    Report(
        title=run.parent.name,
        command=shlex.join(["llmtune", *sys.argv[1:]] if called_as_command else sys.argv),
        decisions=decisions,
        data=prepared.train_tokens.report,
        packs=packs_text(prepared.train_set),
        blocks=blocks_text(prepared.train_set),
        num_skipped=trainer.watch.num_skipped,
        trainable=trainable,
        parameters=parameters,
        seconds=time.perf_counter() - started,
        seconds_to_first_step=max(throughput.first_step - started, 0.0),
        throughput=metrics,
        best_checkpoint=str(result.best_checkpoint or f"none: {_why_none_is_best(result)}"),
        last_checkpoint=str(result.last_checkpoint or "none"),
        interrupted=result.interrupted,
        generations=generations,
    ).write(run)
    write_metrics(run, "train", {name: value for name, value in metrics.items() if not name.startswith("eval_")})
    evaluated = {name: value for name, value in metrics.items() if name.startswith("eval_")}
    if evaluated:
        write_metrics(run, "eval", evaluated)
    draw_curves(run / "logging.jsonl", run / "images")
    if result.last_checkpoint is not None:
        link_last_state(result.last_checkpoint, run)
    if result.best_checkpoint is not None:
        get_logger().info(f"Best checkpoint: {result.best_checkpoint}")
    else:
        get_logger().info(f"Last checkpoint: {result.last_checkpoint or 'none'} ({_why_none_is_best(result)})")
    if result.checkpoint is not None:
        words = ["llmtune", "infer", "--ckpt_dir", str(result.checkpoint)]
        if scores:
            get_logger().info(f"Score responses with it: {shlex.join(words)} --dataset FILE")
        else:
            get_logger().info(f"Chat with it: {shlex.join([*words, '--eval_human', 'true'])}")


def _why_none_is_best(result: SftResult) -> str:
    if result.last_checkpoint is None:
        return "no checkpoint was saved"
    return "nothing was evaluated, so there is no best one"
