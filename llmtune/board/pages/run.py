"""One run: its state and the next step, curves, responses, decisions, log, checkpoints."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from llmtune.board.children import run_of, start
from llmtune.board.data import read_checkpoints, read_decisions, read_log, read_samples
from llmtune.board.form import clean
from llmtune.board.pages.curves import Curves
from llmtune.board.pages.frame import Page, address, gib, panel, state_badge
from llmtune.board.state import Board
from llmtune.errors import LlmtuneError
from llmtune.run.found import read_run, resume_command, stop_run, typed_values
from llmtune.run.sentences import sentence
from llmtune.run.status import TYPED_FILE

SHOWN_EVALUATIONS = 6


def register(board: Board) -> None:
    @ui.page("/run")
    def run(f: str = "") -> None:
        RunPage(board, f).show()


class RunPage(Page):
    def __init__(self, board: Board, folder: str) -> None:
        super().__init__(board, "run")
        self.named = folder
        self.shown_samples: object = None

    def show(self) -> None:
        with self.frame():
            try:
                found = self.board.run_in(self.named)
            except LlmtuneError as err:
                found = None
                ui.label(str(err)).classes("text-negative")
            if found is None:
                ui.label(self.text("not_found")).classes("text-h6")
                ui.link(self.text("runs"), "/")
                return
            self.run = found
            self._head()
            with panel(self.text("curves")):
                self.curves = Curves(self, {self.run.folder.name: self.run.folder})
            with panel(self.text("samples")):
                self.samples = ui.element("div").classes("w-full samples")
            with ui.element("div").classes("w-full grid grid-cols-1 lg:grid-cols-2 gap-2"):
                with panel(self.text("checkpoints")):
                    self.checkpoints = ui.column().classes("w-full gap-1 checkpoints")
                with panel(self.text("decisions")):
                    self.decisions = ui.column().classes("w-full gap-0 decisions")
            self._foot()
            self.refresh(first=True)
            ui.timer(1.0, self.guarded(self.refresh))

    def _foot(self) -> None:
        with panel(self.text("log")):
            self.search = ui.input(self.text("search_log")).props("dense clearable debounce=300").classes("w-full")
            self.search.on_value_change(lambda: self._log())
            with ui.element("div").classes("newest-last w-full").props("tabindex=0"):
                self.log = ui.label().classes("log-lines")
        if (typed := self.run.folder / TYPED_FILE).is_file():
            with ui.expansion(self.text("settings")).classes("w-full"):
                ui.code(typed.read_text(encoding="utf-8", errors="replace"), language="yaml").classes("w-full")

    # The head: one sentence, and the buttons that fit the state

    def _head(self) -> None:
        with ui.row().classes("w-full items-center gap-2"):
            ui.label(self.run.name).classes("text-h6")
            self.badge = ui.row()
            ui.label(self.run.status.stage).classes("text-grey")
        self.sentence = ui.label().classes("text-body1 sentence").props('role=status aria-live="polite"')
        self.facts = ui.label().classes("text-caption text-grey")
        self.bar = ui.linear_progress(0.0, show_value=False).props(f'aria-label="{self.text("progress")}"')
        with ui.row().classes("gap-1"):
            self.buttons = {
                "stop": self._button("stop", "stop", self._stop),
                "kill": self._button("kill", "dangerous", self._kill),
                "resume": self._button("resume", "play_arrow", self._resume),
                "duplicate": self._button("duplicate", "content_copy", self._duplicate),
                "chat": self._button("chat", "chat", self._chat),
                "evaluate": self._button("evaluate", "grading", lambda: self._command("eval")),
                "export": self._button("export", "ios_share", lambda: self._command("merge")),
            }

    def _button(self, key: str, icon: str, work: Callable[[], Any]) -> Any:
        button = ui.button(self.text(key), icon=icon, on_click=self.guarded(lambda *_: work()))
        return button.props("no-caps dense unelevated").classes(f"do-{key}")

    def refresh(self, *, first: bool = False) -> None:
        """Read the run's files again."""
        run = read_run(self.run.folder)
        if run is None:
            return
        was_alive, changed = self.run.status.is_alive, first or run.status != self.run.status
        self.run = run
        if not changed and not run.status.is_alive:
            return
        self._show_state()
        self.curves.refresh()
        self._samples()
        self._log()
        if first or was_alive:
            self._checkpoints()
            self._decisions()

    def _show_state(self) -> None:
        status = self.run.status
        self.badge.clear()
        with self.badge:
            state_badge(self, status.state)
        self.sentence.text = sentence(self.run, self.language)
        parts = [status.model, ", ".join(status.dataset)]
        parts += [f"{status.tokens_per_second:,.0f} tokens/s"] if status.tokens_per_second else []
        parts += [f"{self.text('memory')} {status.memory_gib:.2f} GiB"] if status.memory_gib else []
        self.facts.text = " · ".join(parts)
        self.bar.value = status.step / status.max_steps if status.max_steps else 0.0
        shown = {
            "stop": status.is_alive and status.state not in ("stopping", "queued"),
            "kill": status.is_alive,
            "resume": not status.is_alive and status.resumable and status.state != "finished",
            "duplicate": True,
            **dict.fromkeys(("chat", "evaluate", "export"), bool(status.last_checkpoint)),
        }
        for name, button in self.buttons.items():
            button.set_visibility(shown[name])
            button.set_enabled(not self.board.read_only)

    # What the buttons do

    def _stop(self) -> None:
        self.board.check_may_change()
        stop_run(self.run)
        ui.notify(self.text("asked_to_stop"))

    async def _kill(self) -> None:
        self.board.check_may_change()
        with ui.dialog() as dialog, ui.card():
            ui.label(self.text("kill_sure"))
            with ui.row():
                ui.button(self.text("yes"), on_click=lambda: dialog.submit(True)).props("color=negative no-caps")
                ui.button(self.text("no"), on_click=lambda: dialog.submit(False)).props("no-caps")
        if await dialog:
            stop_run(self.run, kill=True)
            ui.notify(self.text("killed"))

    async def _resume(self) -> None:
        self.board.check_may_change()
        await run_of(start(self.board.root, resume_command(self.run)), self.board.root)
        ui.notify(self.text("resumed"))
        self.refresh(first=True)

    def _duplicate(self) -> None:
        self.board.check_may_change()
        values = {name: value for name, value in typed_values(self.run.folder).items() if name != "run_name"}
        self.board.write_draft(self.run.status.stage, clean(self.run.status.stage, values))
        ui.navigate.to("/new")

    def _chat(self) -> None:
        ui.navigate.to(address("/chat", f=self.board.shown(self._best())))

    def _best(self) -> Path:
        return self.run.folder / (self.run.status.best_checkpoint or self.run.status.last_checkpoint)

    async def _command(self, command: str) -> None:
        self.board.check_may_change()
        words = [command, "--ckpt_dir", self.board.shown(self._best())]
        started = start(self.board.root, words)
        ui.notify(self.text("started_command", command=shlex.join(["llmtune", *words])))
        while started.process.poll() is None:
            await asyncio.sleep(0.5)
        with ui.dialog(value=True), ui.card().classes("w-full"):
            ui.label(self.text("results")).classes("text-subtitle1")
            ui.label(started.said()).classes("log w-full results")

    # What is shown

    def _samples(self) -> None:
        found = read_samples(self.run.folder)
        steps = sorted({step for one in found for step in one.responses})[-SHOWN_EVALUATIONS:]
        if (len(found), steps) == self.shown_samples:
            return
        self.shown_samples = (len(found), steps)
        self.samples.clear()
        with self.samples:
            if not found:
                ui.label(self.text("no_samples")).classes("text-grey")
                return
            across = [self.text("at_step", step=step) for step in steps]
            rows = [[one.prompt, *(one.responses.get(step, "") for step in steps), one.reference] for one in found]
            self.plain_table([self.text("prompt"), *across, self.text("reference")], rows)

    def _log(self) -> None:
        self.log.text = "\n".join(read_log(self.run.folder, search=self.search.value or ""))

    def _decisions(self) -> None:
        self.decisions.clear()
        with self.decisions:
            for line in read_decisions(self.run.folder):
                ui.label(line).classes("text-body2")

    def _checkpoints(self) -> None:
        status = self.run.status
        self.checkpoints.clear()
        with self.checkpoints:
            for folder, scores in read_checkpoints(self.run.folder):
                marks = [self.text("best")] if folder.name == status.best_checkpoint else []
                marks += [self.text("last")] if folder.name == status.last_checkpoint else []
                with ui.row().classes("items-center gap-2"):
                    ui.link(folder.name, address("/chat", f=self.board.shown(folder)))
                    for mark in marks:
                        ui.badge(mark)
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(scores.items()))
                    ui.label(" · ".join(filter(None, (shown, gib(_size_of(folder)))))).classes("text-caption")


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
