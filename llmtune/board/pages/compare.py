"""Several runs: their curves together, the settings that differ, and the same prompts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from nicegui import run as worker
from nicegui import ui

from llmtune.board.data import Watched, differing_settings, read_samples
from llmtune.board.pages.curves import Curves
from llmtune.board.pages.frame import Page, address, panel
from llmtune.board.state import Board
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
        """The last responses of each run, for the prompts that they have."""
        columns = {run.name: {one.prompt: one for one in read_samples(run.folder)} for run in runs}
        prompts = dict.fromkeys(prompt for found in columns.values() for prompt in found)
        rows = []
        for prompt in prompts:
            answers = [_last(found.get(prompt)) for found in columns.values()]
            reference = next((found[prompt].reference for found in columns.values() if prompt in found), "")
            rows.append([prompt, *answers, reference])
        self.plain_table([self.text("prompt"), *columns, self.text("reference")], rows)


def _last(one: Watched | None) -> str:
    return one.responses[max(one.responses)] if one is not None and one.responses else ""


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.5g}"
