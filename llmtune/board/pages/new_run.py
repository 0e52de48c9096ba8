"""A new run: model, data, method; always in sight what it costs, what is wrong, and the command."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any

from nicegui import run as worker
from nicegui import ui

from llmtune.arguments.stages import STAGES
from llmtune.board import form
from llmtune.board.children import run_of, start
from llmtune.board.form import FormField
from llmtune.board.pages.fields import Field, field_for
from llmtune.board.pages.frame import Page, address, panel
from llmtune.board.pages.preview import show_data
from llmtune.board.pages.rail import Rail
from llmtune.board.security import inside
from llmtune.board.state import Board
from llmtune.errors import LlmtuneError, UsageError
from llmtune.models.info import MODEL_MAPPING

MOST_UPLOADED = 2 << 30
"""Bytes of an uploaded file."""
PAUSE = 0.15
"""Seconds without a change after which the form is checked."""


def register(board: Board) -> None:
    @ui.page("/new")
    def new_run() -> None:
        NewRunPage(board).show()


class NewRunPage(Page):
    """The form. `values` is what differs from nothing: the same dictionary becomes command, YAML and arguments."""

    def __init__(self, board: Board) -> None:
        super().__init__(board, "new_run")
        self.stage, self.values = board.read_draft()
        self.fields: dict[str, list[Field]] = {}
        self.gpus = ""
        self._pending: asyncio.Task[None] | None = None

    def show(self) -> None:
        with self.frame(), ui.element("div").classes("w-full grid grid-cols-1 lg:grid-cols-3 gap-2 items-start"):
            with ui.column().classes("lg:col-span-2 w-full gap-2"):
                self.body = ui.column().classes("w-full gap-2")
            with ui.column().classes("w-full gap-2").style("position: sticky; top: 56px"):
                self.rail = Rail(self)
        self._build()

    def _build(self) -> None:
        """Draw the form of the stage, with the values that it has."""
        self.fields.clear()
        self.body.clear()
        with self.body:
            self._model_and_data()
            with panel(self.text("method")), ui.element("div").classes("w-full grid grid-cols-2 md:grid-cols-4 gap-2"):
                for name in form.FIRST:
                    self.add(name)
            self._all_fields()
        self.changed()

    def _model_and_data(self) -> None:
        with panel(self.text("model")):
            stage = ui.select(list(STAGES), value=self.stage, label=self.text("stage"), on_change=self._change_stage)
            stage.classes("w-40").props("dense")
            keys = list(MODEL_MAPPING)
            self.model = ui.select(
                self._with(keys, self.model_name()), value=self.model_name() or None, with_input=True, clearable=True,
                new_value_mode="add-unique", label=self.text("model_search", count=len(keys)),
                on_change=self.guarded(self._change_model),
            )  # fmt: skip
            self.model.classes("w-full model").props("dense")
            self.recognised = ui.label().classes("text-caption")
        with panel(self.text("data")):
            self.add("dataset")
            upload = ui.upload(on_upload=self.guarded(self._upload), auto_upload=True, max_file_size=MOST_UPLOADED)
            upload.props(f'label="{self.text("drop")}" flat bordered').classes("w-full upload")
            with ui.row():
                rows = ui.button(self.text("show_rows"), icon="visibility", on_click=self.guarded(self._show_rows))
                rows.props("no-caps dense flat").classes("show-rows")
            self.preview = ui.column().classes("w-full gap-1 preview")

    def _all_fields(self) -> None:
        everything = [one for one in form.form_fields(self.stage) if one.name not in ("model_type", "model_id_or_path")]
        groups: dict[str, list[FormField]] = {}
        for one in everything:
            groups.setdefault(one.group, []).append(one)
        with ui.expansion(self.text("all_fields", count=len(everything))).classes("w-full all-fields"):
            search = ui.input(self.text("search_fields")).props("dense clearable").classes("w-full search-fields")
            made = [Group(self, title, fields) for title, fields in groups.items()]
            search.on_value_change(lambda event: _filter(made, event.value or ""))

    def add(self, name: str) -> None:
        """Draw the field of a flag here."""
        found = next((one for one in form.form_fields(self.stage) if one.name == name), None)
        if found is not None:
            made = field_for(self, found, self.values.get(name), lambda value: self.set(name, value))
            self.fields.setdefault(name, []).append(made)

    @staticmethod
    def _with(options: list[str], value: str) -> list[str]:
        return [*options, value] if value and value not in options else options

    # Values

    def set(self, name: str, value: Any) -> None:
        """Take a value from a field; an empty one means its default."""
        cleaned = form.clean(self.stage, {name: value})
        if cleaned.get(name) == self.values.get(name):
            return
        self.values = {key: kept for key, kept in self.values.items() if key != name} | cleaned
        for one in self.fields.get(name, []):
            one.show(self.values.get(name))
        self.changed()

    def apply(self, flags: str) -> None:
        """Take flags, of `plan`'s advice say."""
        words = shlex.split(flags)
        for place, word in enumerate(words):
            if word.startswith("--"):
                following = words[place + 1] if place + 1 < len(words) else "true"
                self.set(word[2:], "true" if following.startswith("--") else following)

    def changed(self) -> None:
        """Show the command now; check the form as soon as it rests."""
        self.rail.show_command()
        self.board.write_draft(self.stage, self.values)
        if self._pending is not None:
            self._pending.cancel()
        self._pending = asyncio.get_event_loop().create_task(self._check())

    async def _check(self) -> None:
        await asyncio.sleep(PAUSE)
        try:
            with self.body:
                problems = await self.rail.check()
                for name, fields in self.fields.items():
                    for one in fields:
                        one.complain(problems.get(name, ""))
                if not problems:
                    await self.rail.plan()
        except RuntimeError:  # the page was closed meanwhile
            return

    def model_name(self) -> str:
        """The key or folder of the model; "" without one."""
        value = self.values.get("model_id_or_path") or self.values.get("model_type") or ""
        return value if isinstance(value, str) else value[0]

    def _change_stage(self, event: Any) -> None:
        self.stage = str(event.value)
        self.values = form.clean(self.stage, self.values)
        self._build()

    async def _change_model(self, event: Any) -> None:
        chosen = str(event.value or "")
        self.recognised.text = ""
        self.values = {
            key: value for key, value in self.values.items() if key not in ("model_type", "model_id_or_path")
        }
        if chosen in MODEL_MAPPING:
            self.values = {"model_type": chosen, **self.values}
        elif chosen:
            self.values = {"model_id_or_path": chosen, **self.values}
            self.recognised.text = await worker.io_bound(self._recognise, chosen) or ""
        self.changed()

    def _recognise(self, text: str) -> str:
        from llmtune.models.identify import identify

        try:
            folder = inside(self.board.root, text)
            if not folder.is_dir():
                return ""
            found = identify(str(folder), None)
        except LlmtuneError as err:
            return str(err)
        return self.text("recognised", text=f"{found.model_type} ({found.reason}), template {found.template}")

    # Files

    async def _upload(self, event: Any) -> None:
        self.board.check_may_change()
        name = re.sub(r"[^\w.-]+", "_", Path(event.file.name).name).lstrip(".") or "data"
        folder = self.board.root / "uploads"
        folder.mkdir(exist_ok=True)
        target, number = folder / name, 1
        while target.exists():
            target, number = folder / f"{Path(name).stem}-{number}{Path(name).suffix}", number + 1
        await event.file.save(target)
        ui.notify(self.text("uploaded", name=self.board.shown(target)))
        self.set("dataset", [self.board.shown(target)])
        await self._show_rows()

    async def _show_rows(self) -> None:
        self._refuse()
        self.preview.clear()
        with self.preview:
            ui.spinner()
        try:
            facts = await self.board.helper.ask("check", self.stage, form.argv_of(self.values))
        finally:
            self.preview.clear()
        with self.preview:
            show_data(self, facts)

    def _refuse(self) -> None:
        refused = form.refusals(self.stage, self.values, self.board.root, allow_code=self.board.allow_code)
        if refused:
            raise UsageError(" ".join(f"--{name}: {reason}" for name, reason in refused.items()))

    # What the buttons do

    async def start(self) -> None:
        self.board.check_may_change()
        self._refuse()
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus.replace(" ", "")} if self.gpus else None
        started = start(self.board.root, [self.stage, *form.argv_of(self.values)], environment=environment)
        run = await run_of(started, self.board.root)
        ui.navigate.to(address("/run", f=self.board.shown(run.folder)))

    def enqueue(self) -> None:
        self.board.check_may_change()
        self._refuse()
        self.board.queue.add(self.stage, form.yaml_of(self.stage, self.values), self.gpus)
        ui.notify(self.text("queued_run"))

    def save(self) -> None:
        ui.download.content(form.yaml_of(self.stage, self.values), "run.yaml")

    async def load(self, event: Any) -> None:
        file = self.board.root / ".board" / "loaded.yaml"
        file.parent.mkdir(exist_ok=True)
        await event.file.save(file)
        self.stage, self.values, lines = form.read_form(file)
        for line in lines:
            self.complain(self.text("cannot_say", text=line))
        self.board.write_draft(self.stage, self.values)
        ui.navigate.to("/new")

    async def write_job(self, scheduler: str) -> None:
        self._refuse()
        words = ["launch", f"--{scheduler}", "--dry_run", "--", self.stage, *form.argv_of(self.values)]
        started = start(self.board.root, words)
        while started.process.poll() is None:
            await asyncio.sleep(0.1)
        said = started.log.read_text(encoding="utf-8", errors="replace")
        if started.process.returncode:
            raise UsageError(said.strip().removeprefix("llmtune: "))
        suffix = {"slurm": "sbatch", "sky": "sky.yaml", "ray": "py"}[scheduler]
        with ui.dialog(value=True), ui.card().classes("w-full"):
            ui.code(said).classes("w-full job")
            ui.button(self.text("copy"), on_click=lambda: ui.download.content(said, f"run.{suffix}"), icon="download")


class Group:
    """The fields of a subject, drawn when they are opened: a hundred at once would take a second."""

    def __init__(self, page: NewRunPage, title: str, fields: list[FormField]) -> None:
        self.page = page
        self.fields = fields
        self.is_drawn = False
        self.expansion = ui.expansion(title, on_value_change=self._opened).classes("w-full group").props("dense")

    def _opened(self, event: Any) -> None:
        if event.value and not self.is_drawn:
            self.is_drawn = True
            with self.expansion, ui.element("div").classes("w-full grid grid-cols-1 md:grid-cols-2 gap-2"):
                for one in self.fields:
                    self.page.add(one.name)

    def filter(self, words: list[str]) -> None:
        """Show the group if a field has all words in its name or help, opened; without words, as it is."""
        fits = any(all(word in f"{one.name} {one.help}".lower() for word in words) for one in self.fields)
        self.expansion.set_visibility(fits)
        if words and fits:
            self.expansion.set_value(True)


def _filter(groups: list[Group], wanted: str) -> None:
    for group in groups:
        group.filter(wanted.lower().split())
