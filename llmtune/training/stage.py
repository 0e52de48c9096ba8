"""The steps that all stages share, from arguments to a report.

A stage is an outline of these steps, see `llmtune/stages`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from transformers import TrainerCallback, TrainingArguments

from llmtune.arguments.stage import StageArguments
from llmtune.checkpoint import write_settings
from llmtune.compat.optional import import_tensorboard
from llmtune.distributed.collectives import broadcast_from_rank0
from llmtune.distributed.ranks import first_on_this_machine, is_first, launch_id
from llmtune.errors import UsageError
from llmtune.models.devices import device_name, first_device
from llmtune.models.dtypes import dtype_name, resolve_dtype
from llmtune.models.flops import model_flops
from llmtune.models.heads import inner_model
from llmtune.models.layers import compile_layers, note_kernels
from llmtune.models.sequence_parallel import GROUP
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.planning.auto import resolve_checkpointing
from llmtune.run.folder import args_record, clear_run_folder
from llmtune.run.log import Decisions, first_decisions, log_data, note_steps
from llmtune.run.record import RunRecord, recorded
from llmtune.run.resolved import Run
from llmtune.run.resume import check_same_data, check_steps_left
from llmtune.run.status import SAMPLES_FILE
from llmtune.run.training_arguments import build_training_arguments, checkpoint_activations, placed_trackers
from llmtune.samples.prepare import Prepared, data_identity, note_positions
from llmtune.samples.sampler import Numbered, sample_order
from llmtune.samples.streaming import StreamedSamples
from llmtune.samples.watched import watched_rows
from llmtune.training.build import build_model
from llmtune.training.callbacks import (
    AtStart,
    EarlyStopping,
    Interrupt,
    JsonLog,
    LastStep,
    LossWatch,
    Progress,
    ShowRun,
)
from llmtune.training.following import NoteStatus, WatchSamples
from llmtune.training.hub_push import HubPush, hub_push
from llmtune.training.objective import Objective
from llmtune.training.optimizers import lora_plus, own_optimizer
from llmtune.training.padding import check_packed, settle_padding
from llmtune.training.result import SftResult, last_evaluation, leave_report, result_of
from llmtune.training.resuming import resuming_callbacks
from llmtune.training.sequences import check_shared_out, share_sequences
from llmtune.training.throughput import Throughput
from llmtune.training.trainer import Loop, StageTrainer
from llmtune.tuners.tune import tuner_callbacks
from llmtune.types import Conversation
from llmtune.utils.files import write_json
from llmtune.utils.logging import quiet_libraries
from llmtune.utils.memory import give_back_memory, map_large_blocks

ArgumentsT = TypeVar("ArgumentsT", bound=StageArguments)


@dataclass
class Stage(Generic[ArgumentsT]):
    """A running stage.

    Attributes:
        args: Arguments of the run, those of the resumed checkpoint included, which the arguments of the call may lack;
            `auto` values are resolved before the model is built.
        started: Start by `time.perf_counter`.
        folder: The run folder, once created.
        watched: Prompts whose responses are written down at each evaluation, by `watch`; None without any.
        at_start: Work that needs the model as the trainer has wrapped it, before the first step.
    """

    run: Run
    record: RunRecord
    args: ArgumentsT
    decisions: Decisions
    push: HubPush | None
    started: float
    interrupt: Interrupt = field(default_factory=Interrupt)
    at_start: list[Callable[[StageTrainer], None]] = field(default_factory=list)
    arguments: TrainingArguments = field(init=False)
    samples: Prepared = field(init=False)
    watched: list[Conversation] = field(init=False)
    watch: WatchSamples | None = None
    folder: Path = field(init=False)

    @classmethod
    @contextlib.contextmanager
    def begin(cls, args: ArgumentsT) -> Iterator[Stage[ArgumentsT]]:
        """Make the run folder, hold it until the stage ends, and check all that can be checked.

        Raises:
            LlmtuneError: The run would fail.
        """
        started = time.perf_counter()
        quiet_libraries()
        map_large_blocks()
        with recorded(args) as record:
            run = Run.resolve(args)
            run.check_start()
            decisions = first_decisions(run.args)
            record.note_arguments(run.args)
            record.note(gpus=[device_name()] if first_device() != "cpu" else [])
            push = hub_push(run.args) if is_first() else None
            yield cls(run, record, cast("ArgumentsT", run.args), decisions, push, started)

    def prepare(self, prepare: Callable[[StageArguments], Prepared]) -> Prepared:
        """Prepare the samples, first in one process per machine; set up the process group."""
        self.record.note(state="encoding")
        with first_on_this_machine("data"):
            samples = prepare(self.args)
        if self.run.resume is not None:
            check_steps_left(self.run.resume, samples.num_steps(self.args))
            check_same_data(self.run.resume, data_identity(samples))
        self.watched = watched_rows(self.args, samples)
        if self.args.early_stopping_patience is not None and samples.validation_tokens is None:
            raise UsageError("--early_stopping_patience compares evaluations, and there are no validation rows.")
        log_data(samples, self.args, self.decisions)
        note_positions(samples, self.args)
        self.samples = samples
        has_validation = samples.validation_tokens is not None
        self.arguments = build_training_arguments(self.args, has_validation=has_validation)
        self.args = broadcast_from_rank0(
            resolve_checkpointing(self.args, samples, self.decisions) if is_first() else None
        )
        checkpoint_activations(self.arguments, self.args)
        return samples

    def build_model(self) -> Any:
        """Build the model with its trainable parameters."""
        args, samples = self.args, self.samples
        self.record.note(state="loading")
        model = build_model(args, samples.info, self.decisions, samples.num_steps(args), samples.new_rows)
        args = self.args = settle_padding(args, samples, model, self.decisions)
        share_sequences(args, samples, model, self.decisions)
        compile_layers(model, args, self.decisions)
        self.folder = broadcast_from_rank0(self.record.folder)
        if is_first():
            clear_run_folder(self.folder, self.run.resume)
        self.arguments.output_dir = str(self.folder)
        self.arguments.run_name = args.run_name or self.folder.name
        note_steps(self.decisions, args, self.arguments, samples, self.run.resume)
        self.decisions.fact("Run folder", str(self.folder))
        give_back_memory()  # what the weights were read by
        return model

    def train(
        self,
        model: Any,
        objective: Objective,
        collator: Callable[[Any], Any],
        generate_metrics: Callable[[Any], dict[str, float]] | None = None,
        loop: Loop | None = None,
    ) -> SftResult:
        """Train, and write checkpoints, logs and a report.

        Args:
            generate_metrics: Computes additional metrics of an evaluation from the model.
            loop: Samples the responses of an online stage.
        """
        sharing = self.args.sequence_parallel_size
        throughput = Throughput(model_flops(model), since=self.started, sharing=sharing)
        trainer = self._trainer(model, objective, collator, throughput, generate_metrics, loop)
        note_kernels(model, self.args, self.decisions)
        with placed_trackers(self.args.report_to, self.folder):
            metrics = trainer.run(self.run.resume, self.interrupt)
        derived = objective.derived("train", metrics["train_loss"])
        metrics |= {f"train_{name}": value for name, value in derived.items()}
        metrics |= throughput.summary() | last_evaluation(trainer)
        result = result_of(trainer, self.folder, metrics, self.interrupt)
        if result.interrupted:
            self.record.note(state="stopping")
        leave_report(result, self.samples, trainer, self.decisions, throughput, self.started, self._latest())
        if self.push is not None:
            self.push.finish(result.last_checkpoint)
        return result

    def _trainer(
        self,
        model: Any,
        objective: Objective,
        collator: Callable[[Any], Any],
        throughput: Throughput,
        generate_metrics: Callable[[Any], dict[str, float]] | None,
        loop: Loop | None,
    ) -> StageTrainer:
        args, samples = self.args, self.samples
        settings = self._record_settings()
        watch = LossWatch(args.on_nan, objective.divergence_limit, samples.describe)
        log = JsonLog(self.folder / "logging.jsonl", throughput)
        callbacks = [throughput, log, Progress(throughput), LastStep(), self.interrupt, watch, *tuner_callbacks(args)]
        callbacks += self._watchers()
        padding, train_set = samples.tokenizer.pad_token_id, samples.train_set
        if "tensorboard" in args.report_to:
            import_tensorboard()
        optimizer = lora_plus(model, self.arguments, args)
        trainer = StageTrainer(
            model=model,
            args=self.arguments,
            train_dataset=train_set if isinstance(train_set, StreamedSamples) else Numbered(train_set, padding),
            eval_dataset=None if samples.validation_set is None else Numbered(samples.validation_set, padding),
            data_collator=collator,
            processing_class=samples.tokenizer,
            callbacks=callbacks,
            objective=objective,
            throughput=throughput,
            settings=settings,
            optimizers=(optimizer, None),
            optimizer_cls_and_kwargs=own_optimizer(model, self.arguments, args) if optimizer is None else None,
            watch=watch,
            order=sample_order(args),
            async_save=args.async_save,
            keep=args.save_total_limit if args.save_total_limit > 0 else None,
            changed=args.changed_on_resume,
            generate_metrics=generate_metrics,
            media=samples.media,
            loop=loop,
            sharing=args.sequence_parallel_size,
        )
        for callback in resuming_callbacks(trainer, self.run.resume):
            trainer.add_callback(callback)
        for work in self.at_start:
            trainer.add_callback(AtStart(partial(work, trainer)))
        trainer.add_callback(ShowRun(trainer, self.decisions))
        trainer.add_callback(NoteStatus(self.record, self.interrupt, throughput, trainer.best_checkpoint))
        if has_sharded_weights(model):  # only now can they be gathered to try it
            trainer.add_callback(AtStart(lambda: check_packed(args, samples, trainer.model)))
            if (group := getattr(inner_model(model), GROUP, None)) is not None:
                trainer.add_callback(AtStart(lambda: check_shared_out(trainer.model, group, samples)))
        if self.push is not None:
            trainer.add_callback(self.push)
        return trainer

    def _latest(self) -> tuple[int, list[dict[str, Any]]]:
        """The step of the last responses to the first validation rows, which the report has too, and their records."""
        return (-1, []) if self.watch is None or self.args.watch_prompts else self.watch.latest

    def _watchers(self) -> list[TrainerCallback]:
        """The callbacks of evaluations: the responses to `--watch_prompts`, and early stopping."""
        found: list[TrainerCallback] = []
        if self.watched:
            self.watch = WatchSamples(self.watched, self.samples.template, self.folder / SAMPLES_FILE)
            found.append(self.watch)
        patience = self.args.early_stopping_patience
        return found if patience is None else [*found, EarlyStopping(patience)]

    def _record_settings(self) -> dict[str, Any]:
        """Write the settings of the run into its folder; checkpoints get the same."""
        dtype = dtype_name(resolve_dtype(self.samples.info, self.args.dtype)[0])
        notes = {"_launch": launch_id(), "_data": data_identity(self.samples), "_stage": self.args.STAGE}
        record = args_record(self.args, **notes, dtype=dtype)
        if is_first():
            write_settings(self.folder, record)
            write_json(self.folder / "training_args.json", self.arguments.to_dict())
        return record
