"""What happens beside the steps: a progress bar, logging.jsonl, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmtune.distributed.collectives import any_process
from llmtune.distributed.ranks import launcher_is_gone
from llmtune.distributed.strategy import strategy_text
from llmtune.run.log import Decisions
from llmtune.training.throughput import Throughput
from llmtune.utils.logging import get_logger

__all__ = ["AtStart", "Interrupt", "JsonLog", "LastStep", "NoteStrategy", "Progress"]


LOGGED = (
    "useful_tokens_per_second",
    "computed_tokens_per_second",
    "padding_share",
    "learned_share",
    "data_wait_share",
    "tflops",
    "mfu",
    "peak_memory_gib",
    "seconds_to_first_step",
)
"""What of the throughput so far stands in each record of the loss."""


HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none


class JsonLog(TrainerCallback):
    """Appends one record a log to logging.jsonl, bar or no bar."""

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
        record |= {name: found[name] for name in LOGGED if name in found}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


class Progress(TrainerCallback):
    """A bar of optimizer steps with the time left; where there is no terminal, a line for each log."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.eval_bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **_: Any
    ) -> None:
        if self.bar is None or eval_dataloader is None:
            return
        if self.eval_bar is None:
            self.eval_bar = tqdm(total=len(eval_dataloader), desc="Evaluating", leave=False)
        self.eval_bar.update()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        if self.eval_bar is not None:
            self.eval_bar.close()
            self.eval_bar = None

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        shown = {name: logs[name] for name in SHOWN if name in logs}
        if self.bar is not None and "loss" in shown:
            self.bar.set_postfix({name.replace("learning_rate", "lr"): f"{value:.4g}" for name, value in shown.items()})
        elif shown:
            text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            line = f"step {state.global_step}/{state.max_steps}  {text}"
            tqdm.write(line, file=sys.stderr) if self.bar is not None else get_logger().info(line)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


SHOWN = ("loss", "learning_rate", "eval_loss", "eval_token_acc", "eval_rouge-l", "eval_bleu-4")


class LastStep(TrainerCallback):
    """The last step is logged, and evaluated where evaluation goes by steps, wherever it falls."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy == "steps"
        return control


class Interrupt(TrainerCallback):
    """Ctrl-C, a scheduler's SIGTERM or a closed terminal's SIGHUP ends the training after its step, with a checkpoint.

    A second Ctrl-C ends it at once. Processes whose launcher has died end in the same way: nobody would ever stop them.
    `asked`: what asked for it, empty where nothing did.
    """

    def __init__(self) -> None:
        self.asked = ""
        self._former: dict[int, Any] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        asks = {signal.SIGINT: self._ask, signal.SIGTERM: self._terminate}
        if signal.getsignal(HANGUP) is not signal.SIG_IGN:  # nohup's is left alone
            asks[HANGUP] = self._terminate
        for number, ask in asks.items():
            with contextlib.suppress(ValueError):  # not in the main thread, as in some notebooks: signals are theirs
                self._former[number] = signal.signal(number, ask)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self.asked and launcher_is_gone():
            self.asked = "the end of its launcher"
            get_logger().warning("The process that started this one has died: stopping, with a checkpoint.")
        if any_process(bool(self.asked)):  # processes are not told at the same step
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
        get_logger().warning("Stopping after this step, with a checkpoint. Ctrl-C again stops at once.")

    def _terminate(self, number: int, *_: Any) -> None:
        self.asked = signal.Signals(number).name
        get_logger().warning("%s: stopping after this step, with a checkpoint.", self.asked)


class AtStart(TrainerCallback):
    """Does something once all is wrapped, before the first step."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.work()


class NoteStrategy(TrainerCallback):
    """Notes what the trainer made of the strategy, when training begins."""

    def __init__(self, trainer: Any, decisions: Decisions) -> None:
        self.trainer = trainer
        self.decisions = decisions

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if text := strategy_text(self.trainer.model_wrapped, self.trainer.model):
            self.decisions.note(text)


def _round(key: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if key != "epoch" else round(value, 4)
