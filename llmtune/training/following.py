"""For those who follow a run: its status, and its responses to a few prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from llmtune.distributed.ranks import is_first
from llmtune.inference.engine import Engine
from llmtune.inference.sampling import Sampling
from llmtune.models.layers import without_compiling
from llmtune.run.record import RunRecord
from llmtune.templates.chat import ChatTemplate
from llmtune.training.callbacks import Interrupt, seconds_left
from llmtune.training.throughput import Throughput, peak_memory_gib
from llmtune.types import Conversation

WATCHED_TOKENS = 64


class NoteStatus(TrainerCallback):
    """Keeps status.json at the step of the run. Comes last, so that it knows what follows a step."""

    def __init__(
        self, record: RunRecord, interrupt: Interrupt, throughput: Throughput, best: Callable[[], Path | None]
    ) -> None:
        self.record = record
        self.interrupt = interrupt
        self.throughput = throughput
        self.best = best
        self.first_step = 0
        interrupt.on_asked = lambda: record.note(state="stopping")

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.first_step = state.global_step
        self._note("training", state)
        self.record.note_checkpoints(best=self.best())

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._note("training", state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        follows = "evaluating" if control.should_evaluate else "saving" if control.should_save else "training"
        self._note(follows, state)

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._note("saving" if control.should_save else "training", state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._note("training", state)
        self.record.note_checkpoints(best=self.best())

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        self.record.note_metrics(logs or {})
        if "loss" in (logs or {}):
            speed = round(self.throughput.tokens_per_second, 1)
            self.record.note(tokens_per_second=speed, memory_gib=round(peak_memory_gib(), 3))

    def _note(self, state: str, at: TrainerState) -> None:
        left = seconds_left(self.throughput, at, self.first_step)
        shown = "stopping" if self.interrupt.asked else state
        self.record.note(state=shown, step=at.global_step, max_steps=at.max_steps, eta_seconds=left)


class WatchSamples(TrainerCallback):
    """Appends the responses to a few prompts to samples.jsonl at each evaluation, greedily generated.

    All processes generate, since the weights may be sharded; the first one writes.

    Attributes:
        latest: The optimizer step of the newest evaluation, and its records.
    """

    def __init__(self, rows: Sequence[Conversation], template: ChatTemplate, file: Path) -> None:
        self.rows = rows
        self.template = template
        self.file = file
        self.latest: tuple[int, list[dict[str, Any]]] = (-1, [])

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        was_training = model.training
        sampling = Sampling(max_new_tokens=WATCHED_TOKENS)
        with without_compiling(model):
            found = list(Engine(model, self.template).answer(self.rows, sampling, batch_size=len(self.rows)))
        model.train(was_training)
        step = state.global_step
        pairs = enumerate(zip(self.rows, found, strict=True))
        self.latest = step, [_record(step, index, row, response) for index, (row, response) in pairs]
        if not is_first():
            return
        with self.file.open("a", encoding="utf-8") as out:
            for record in self.latest[1]:
                out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _record(step: int, index: int, row: Conversation, response: str) -> dict[str, Any]:
    turns = row.turns
    reference = turns[-1].content if turns and turns[-1].role == "assistant" else ""
    asked = [turn.content for turn in turns if turn.role != "assistant"]
    return {
        "step": step,
        "index": index,
        "prompt": asked[-1] if asked else "",
        "reference": reference,
        "response": response,
    }
