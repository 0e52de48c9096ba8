"""Trainer callbacks: progress, logging.jsonl, Ctrl-C, and the check of each loss."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmtune.distributed.collectives import any_rank, strategy_text
from llmtune.distributed.ranks import launcher_is_gone
from llmtune.errors import TrainingError
from llmtune.models.devices import gib
from llmtune.planning.auto import free_memory, used_memory
from llmtune.run.log import Decisions
from llmtune.samples.sampler import FILLER
from llmtune.training.throughput import Throughput, peak_memory_gib
from llmtune.utils.logging import get_logger
from llmtune.utils.progress import draws_bars, progress_bar, write_above

LOGGED = (
    "useful_tokens",
    "useful_tokens_per_second",
    "computed_tokens_per_second",
    "padding_share",
    "trainable_share",
    "data_wait_share",
    "tflops",
    "mfu",
    "peak_memory_gib",
    "seconds_to_first_step",
)
"""Keys of the throughput summary that go into each record of the loss."""


HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows lacks it


class JsonLog(TrainerCallback):
    """Appends one JSON record per log step to logging.jsonl."""

    def __init__(self, file: Path, throughput: Throughput) -> None:
        self.file = file
        self.throughput = throughput

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not logs:
            return
        found = self.throughput.summary() if "loss" in logs else {}
        if not state.is_world_process_zero:
            return
        record = {key: _round(key, value) for key, value in logs.items()} | {"global_step": state.global_step}
        record |= {name: found[name] for name in LOGGED if name in found} | {"time": round(time.time(), 1)}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


class Progress(TrainerCallback):
    """One line per log step, and in a terminal a progress bar of optimizer steps."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.first_step = 0
        self.bar: Any = None
        self.eval_bar: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.first_step = state.global_step
        if state.is_world_process_zero and draws_bars():
            self.bar = progress_bar(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **_: Any
    ) -> None:
        if self.bar is None or eval_dataloader is None:
            return
        if self.eval_bar is None:
            self.eval_bar = progress_bar(total=len(eval_dataloader), desc="Evaluating", leave=False)
        self.eval_bar.update()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        if self.eval_bar is not None:
            self.eval_bar.close()
            self.eval_bar = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        parts = [f"{name} {logs[name]:.4g}" for name in SHOWN if isinstance(logs.get(name), int | float)]
        if "loss" in logs:
            parts += self._speed()
        elif speed := logs.get("eval_samples_per_second"):
            parts.append(f"samples/s {speed:,.1f}")
        if parts:
            parts.append(self._left(state))
            line = "  ".join([f"step {state.global_step}/{state.max_steps}", *parts])
            write_above(line) if self.bar is not None else get_logger().info(line)

    def _speed(self) -> list[str]:
        """Tokens/s since the last line and peak memory."""
        return [f"tokens/s {self.throughput.tokens_per_second:,.0f}", f"memory {peak_memory_gib():.2f} GiB"]

    def _left(self, state: TrainerState) -> str:
        """Time left, evaluation and saving included."""
        left = seconds_left(self.throughput, state, self.first_step) or 0.0
        return f"ETA {timedelta(seconds=round(left))}"

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def seconds_left(throughput: Throughput, state: TrainerState, first_step: int) -> float | None:
    """The time left, by that of the steps since `first_step`; None before the first of them has ended."""
    done = state.global_step - first_step
    if done < 1:
        return None
    return round(throughput.seconds / done * (state.max_steps - state.global_step), 1)


SHOWN = (
    *("loss", "grad_norm", "learning_rate", "eval_loss", "eval_perplexity", "eval_bits_per_byte", "eval_token_acc"),
    *("eval_rouge-l", "eval_bleu-4", "rewards/margins", "rewards/accuracies", "kl"),
    *("eval_rewards/margins", "eval_rewards/accuracies"),
    *("reward", "frac_reward_zero_std", "completions/mean_length", "entropy", "eval_reward"),
)


class LastStep(TrainerCallback):
    """Logs the last step, and evaluates it if evaluation is by steps, whatever the intervals."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy == "steps"
        return control


class Interrupt(TrainerCallback):
    """Ends training after the current step, with a checkpoint, on Ctrl-C, SIGTERM or SIGHUP (a closed terminal).

    A second Ctrl-C ends it at once. Processes whose launcher has died end in the same way, since nobody else would stop
    them. `asked`: the signal; empty if there was none.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._former: dict[int, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        asks = {signal.SIGINT: self._ask, signal.SIGTERM: self._terminate}
        if signal.getsignal(HANGUP) is not signal.SIG_IGN:  # nohup's stays
            asks[HANGUP] = self._terminate
        for number, ask in asks.items():
            with contextlib.suppress(ValueError):  # not the main thread, as in some notebooks
                self._former[number] = signal.signal(number, ask)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.asked and launcher_is_gone():
            self.asked = "the end of its launcher"
            get_logger().warning("The launcher of this process has died: saving a checkpoint and stopping.")
        if any_rank(bool(self.asked)):  # ranks do not get the signal at the same step
            self.asked = self.asked or "SIGTERM"
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.restore()

    def restore(self) -> None:
        while self._former:
            number, handler = self._former.popitem()
            signal.signal(number, handler)

    def _ask(self, *_: Any) -> None:
        if self.asked == "Ctrl-C":
            raise KeyboardInterrupt
        self.asked = "Ctrl-C"
        self.on_asked()
        get_logger().warning("Saving a checkpoint after this step, then stopping. Press Ctrl-C again to stop at once.")

    def _terminate(self, number: int, *_: Any) -> None:
        self.asked = signal.Signals(number).name
        self.on_asked()
        get_logger().warning("%s: saving a checkpoint after this step, then stopping.", self.asked)


class EarlyStopping(EarlyStoppingCallback):
    """Stops after a number of evaluations in a row without a new best one; a resumed run counts on."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience and state.best_metric is not None:
            get_logger().info(
                "Early stopping at step %s: no better %s in %s evaluations than %.4g, at step %s.",
                state.global_step, args.metric_for_best_model, self.early_stopping_patience_counter,
                state.best_metric, state.best_global_step,
            )  # fmt: skip


class AtStart(TrainerCallback):
    """Calls `work` when training begins: all is wrapped, and no step was made."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.work()


class ShowRun(TrainerCallback):
    """Logs the block of the run when training begins, with the distribution that the trainer set up."""

    def __init__(self, trainer: Any, decisions: Decisions) -> None:
        self.trainer = trainer
        self.decisions = decisions

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if text := strategy_text(self.trainer.model_wrapped, self.trainer.model):
            self.decisions.fact("Distributed", text)
        free = gib(free_memory())
        self.decisions.fact("Memory", f"{gib(used_memory())} used with the model loaded, {free} free")
        self.decisions.show()


def _round(key: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if key != "epoch" else round(value, 4)


# NaN, infinite and diverged losses, reported with the samples of the step


OnNan = Literal["stop", "skip"]
Describe = Callable[[Sequence[int]], str]

SKIPS_IN_A_ROW = 10
"""Consecutive skipped steps after which `skip` stops too: the weights themselves are broken."""


class LossWatch(TrainerCallback):
    """Checks the loss before each optimizer step, at the cost of one device synchronisation per step.

    Args:
        on_nan: `stop` raises, before the weights change; `skip` skips the step.
        limit: A loss above it has diverged; None: no value says so.
        describe: Names samples by their indices.
    """

    def __init__(self, on_nan: OnNan, limit: float | None, describe: Describe) -> None:
        self.on_nan = on_nan
        self.limit = math.inf if limit is None else limit
        self.num_skipped = 0
        self._in_a_row = 0
        self._describe = describe
        self._losses: list[torch.Tensor] = []
        self._samples: list[torch.Tensor | None] = []

    def add(self, loss: torch.Tensor, samples: torch.Tensor | None) -> None:
        """Add the loss of one micro-batch, as its share of the step's loss."""
        self._losses.append(loss.detach())
        self._samples.append(samples)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        losses = torch.stack([loss.float() for loss in self._losses])
        samples, self._losses, self._samples = self._samples, [], []
        gradient = next((parameter.grad for parameter in model.parameters() if parameter.grad is not None), None)
        sound = torch.isfinite(losses).all() & (losses.sum() < self.limit)
        if gradient is not None and not args.fp16:  # the fp16 scaler itself skips steps whose gradients overflow
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            sound = sound & torch.isfinite(local).all().to(sound.device)
        if not any_rank(not bool(sound)):
            self._in_a_row = 0
            return
        text = self._text(losses, [batch for batch in samples if batch is not None], state.global_step + 1)
        self._in_a_row += 1
        if self.on_nan == "stop" or self._in_a_row >= SKIPS_IN_A_ROW:
            raise TrainingError(
                f"{text} Inspect these samples with llmtune check, lower --learning_rate, or skip such steps with "
                "--on_nan skip. To resume from the last checkpoint: --resume_from_checkpoint last."
            )
        self.num_skipped += 1
        get_logger().warning("%s The step is skipped.", text)
        for parameter in model.parameters():
            parameter.grad = None

    def _text(self, losses: torch.Tensor, samples: Sequence[torch.Tensor], step: int) -> str:
        bad = [batch for batch, loss in zip(samples, losses.tolist(), strict=False) if not math.isfinite(loss)]
        chosen = [index for batch in bad or samples for index in batch.tolist() if index != FILLER]
        total = losses.sum().item()
        text = "is NaN or infinite" if not math.isfinite(total) else "has diverged"
        if math.isfinite(total) and total < self.limit:
            text = "has NaN or infinite gradients"
        return f"Loss at step {step} {text} ({total:.4g}). Samples of this step: {self._describe(chosen)}."
