"""Several runs: their curves together, the settings that differ, and the same prompts side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import Query
from nicegui import run as worker
from nicegui import ui

from llmtune.board.data import Watched, differing_settings, read_samples
from llmtune.board.pages.curves import Curves
from llmtune.board.pages.frame import Page, address, panel
from llmtune.board.state import Board
from llmtune.checkpoint import numbered_checkpoints, step_of
from llmtune.errors import LlmtuneError
from llmtune.run.found import FoundRun, find_runs


def register(board: Board) -> None:
    async def compare(f: Annotated[list[str] | None, Query()] = None) -> None:
        await ComparePage(board, f or []).show()

    compare.__annotations__ = {"f": Annotated[list[str] | None, Query()], "return": None}  # names of this function
    ui.page("/compare")(compare)


class ComparePage(Page):
    def __init__(self, board: Board, folders: Sequence[str]) -> None:
        super().__init__(board, "compare")
        self.folders = folders

    async def show(self) -> None:
        with self.frame():
            found = await worker.io_bound(find_runs, self.board.root) or []
            options = {self.board.shown(run.folder): run.name for run in found}
            chosen = [folder for folder in self.folders if folder in options]
            select = ui.select(options, multiple=True, value=chosen, label=self.text("choose_runs"))
            select.classes("w-full").props("use-chips dense")
            select.on_value_change(lambda event: ui.navigate.to(address("/compare", f=event.value)))
            runs = self._runs(chosen)
            if len(runs) < 2:
                ui.label(self.text("nothing_to_compare")).classes("text-grey")
                return
            self._show_runs(runs)

    def _show_runs(self, runs: Sequence[FoundRun]) -> None:
        head = ["", *(run.name for run in runs)]
        with panel(self.text("curves")):
            curves = Curves(self, {run.name: run.folder for run in runs})
            ui.timer(3.0, curves.refresh)
        with panel(self.text("differences")).classes("differences"):
            rows = differing_settings([run.folder for run in runs])
            self.plain_table(head, [[name, *values] for name, values in rows.items()])
        with panel(self.text("evaluations")):
            names = sorted({name for run in runs for name in run.status.metrics if name.startswith("eval_")})
            self.plain_table(head, [[name, *(_number(run.status.metrics.get(name)) for run in runs)] for name in names])
        with panel(self.text("same_prompts")).classes("same-prompts"):
            self._prompts(runs)

    def _runs(self, folders: Sequence[str]) -> list[FoundRun]:
        found = []
        for folder in folders:
            try:
                run = self.board.run_in(folder)
            except LlmtuneError:
                continue
            if run is not None:
                found.append(run)
        return found

    def _prompts(self, runs: Sequence[FoundRun]) -> None:
        """The responses of each checkpoint that is kept, for the prompts that the runs have."""
        found = {run.name: {one.prompt: one for one in read_samples(run.folder)} for run in runs}
        columns = [(run.name, step) for run in runs for step in _steps(run, found[run.name].values())]
        references = {prompt: one.reference for watched in found.values() for prompt, one in watched.items()}
        rows = []
        for prompt, reference in references.items():
            watched = [(found[name].get(prompt), step) for name, step in columns]
            responses = [one.responses.get(step, "") if one is not None else "" for one, step in watched]
            rows.append([prompt, *responses, reference])
        heads = [f"{name} {self.text('at_step', step=step)}" for name, step in columns]
        self.plain_table([self.text("prompt"), *heads, self.text("reference")], rows)


def _steps(run: FoundRun, watched: Iterable[Watched]) -> list[int]:
    """The steps of the run's checkpoints at which it has responses; without any, the last step that has."""
    seen = {step for one in watched for step in one.responses}
    kept = [step_of(folder) for folder in numbered_checkpoints(run.folder) if step_of(folder) in seen]
    return kept or sorted(seen)[-1:]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}"
