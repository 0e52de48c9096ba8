"""The runs below the root, and the queue."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from nicegui import run as worker
from nicegui import ui

from llmtune.board.children import reap, run_of, start
from llmtune.board.pages.frame import Page, address, panel
from llmtune.board.state import Board
from llmtune.run.found import FoundRun, find_runs

FIRST_RUN = (
    *("sft", "--model_type", "llmtune-tiny", "--sft_type", "full", "--dataset", "tiny-qa", "self-intro"),
    *("--num_train_epochs", "6", "--batch_size", "8", "--gradient_accumulation_steps", "1"),
    *("--learning_rate", "2e-3", "--eval_steps", "50", "--only_save_model", "false", "--run_name", "first"),
)
"""The first click: nothing is downloaded, and the result answers questions."""
COLUMNS = ("state", "name", "stage", "data", "progress", "left", "loss", "eval_loss", "started")
NAME_CELL = """<q-td :props="props"><a :href="props.row.url" @click.stop>{{ props.value }}</a></q-td>"""
STATE_CELL = """<q-td :props="props"><q-badge :class="'state state-' + props.row.kind" :color="({finished: 'positive',
  failed: 'negative', stopped: 'warning', stopping: 'warning'})[props.row.kind] || 'primary'">{{ props.value }}
  </q-badge></q-td>"""
PHONE_ITEM = """<div class="col-12 q-pa-xs"><div class="q-pa-sm rounded-borders phone-item">
  <q-checkbox dense v-model="props.selected" :aria-label="props.row.name" />
  <a :href="props.row.url">{{ props.row.name }}</a>
  <div>{{ props.row.state }} {{ props.row.progress }} {{ props.row.left }}</div>
  <div class="text-caption">{{ props.row.stage }} {{ props.row.data }} {{ props.row.loss }}</div>
  </div></div>"""


def register(board: Board) -> None:
    @ui.page("/")
    async def runs() -> None:
        await RunsPage(board).show()


class RunsPage(Page):
    def __init__(self, board: Board) -> None:
        super().__init__(board, "runs")
        self.shown_queue: object = None

    async def show(self) -> None:
        with self.frame():
            self.empty = ui.column().classes("w-full items-center q-pa-lg gap-3")
            with self.empty:
                ui.label(self.text("no_runs")).classes("text-h6")
                button = ui.button(self.text("first_run"), icon="play_arrow", on_click=self.guarded(self._first_run))
                button.props("size=lg no-caps").classes("first-run").set_enabled(not self.board.read_only)
            with ui.column().classes("w-full") as self.filled:
                self.table = ui.table(columns=self._columns(), rows=[], row_key="folder", selection="multiple")
                self.table.classes("w-full runs").props(
                    'flat dense wrap-cells :grid="Quasar.Screen.lt.sm" hide-pagination'
                )
                self.table.on("row-click", lambda event: ui.navigate.to(str(event.args[1]["url"])))
                for slot, cell in (
                    ("body-cell-name", NAME_CELL),
                    ("body-cell-state", STATE_CELL),
                    ("item", PHONE_ITEM),
                ):
                    self.table.add_slot(slot, cell)
                compare = ui.button(self.text("compare_ticked"), icon="compare_arrows", on_click=self._compare)
                compare.props("flat no-caps")
            self._queue()
            await self._refresh()
            ui.timer(2.0, self._refresh)

    def _columns(self) -> list[dict[str, Any]]:
        return [{"name": name, "label": self.text(name), "field": name, "align": "left"} for name in COLUMNS]

    async def _refresh(self) -> None:
        found = await worker.io_bound(find_runs, self.board.root) or []
        reap()
        self.empty.set_visibility(not found)
        self.filled.set_visibility(bool(found))
        rows = [self._row(run) for run in found]
        if rows != self.table.rows:
            self.table.rows = rows
            self.table.update()

    def _row(self, run: FoundRun) -> dict[str, str]:
        status = run.status
        left = "" if status.eta_seconds is None else str(timedelta(seconds=round(status.eta_seconds)))
        numbers = {name: status.metrics.get(name) for name in ("loss", "eval_loss")}
        return {
            "folder": self.board.shown(run.folder),
            "url": address("/run", f=self.board.shown(run.folder)),
            "kind": status.state,
            "state": self.text(status.state),
            "name": run.name,
            "stage": status.stage,
            "data": ", ".join(status.dataset),
            "progress": f"{status.step:,} / {status.max_steps:,}" if status.max_steps else "",
            "left": left,
            **{name: "" if value is None else f"{value:.4g}" for name, value in numbers.items()},
            "started": status.started.replace("T", " ")[:16],
        }

    def _compare(self) -> None:
        ui.navigate.to(address("/compare", f=[str(row["folder"]) for row in self.table.selected]))

    async def _first_run(self) -> None:
        self.board.check_may_change()
        started = start(self.board.root, FIRST_RUN)
        run = await run_of(started, self.board.root)
        ui.navigate.to(address("/run", f=self.board.shown(run.folder)))

    # The queue

    def _queue(self) -> None:
        with panel(self.text("queue")).classes("queue"):
            switch = ui.switch(self.text("queue_on"), value=self.board.queue_on)
            switch.on_value_change(self.guarded(self._switch_queue)).set_enabled(not self.board.read_only)
            self.waiting = ui.column().classes("w-full gap-1")
            self._refresh_queue()
            ui.timer(2.0, self._refresh_queue)

    def _switch_queue(self, event: Any) -> None:
        self.board.check_may_change()
        self.board.queue_on = bool(event.value)

    def _refresh_queue(self) -> None:
        shown = [(one.file.name, one.stage, one.gpus, one.title) for one in self.board.queue.waiting()]
        if shown == self.shown_queue:
            return
        self.shown_queue = shown
        self.waiting.clear()
        with self.waiting:
            if not shown:
                ui.label(self.text("queue_empty")).classes("text-grey")
            for name, stage, gpus, title in shown:
                with ui.row().classes("items-center gap-2 queued"):
                    ui.label(f"{name}  {stage}  {title}" + (f"  GPU {gpus}" if gpus else ""))
                    button = ui.button(
                        icon="close", on_click=self.guarded(lambda _=None, name=name: self._remove(name))
                    )
                    button.props(f'flat dense round aria-label="{self.text("remove")}"')

    def _remove(self, name: str) -> None:
        self.board.check_may_change()
        self.board.queue.remove(name)
        self._refresh_queue()
