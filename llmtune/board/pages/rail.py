"""The rail of a new run, always in sight: memory, steps and hours, problems, the command, the buttons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nicegui import ui

from llmtune.board import form
from llmtune.board.machine import gpu_states
from llmtune.board.pages.frame import gib, panel
from llmtune.errors import LlmtuneError

if TYPE_CHECKING:
    from llmtune.board.pages.new_run import NewRunPage

PARTS = {
    "weights": "#2b6cb0", "gradients": "#38a169", "optimizer": "#805ad5", "activations": "#dd6b20", "logits": "#d53f8c",
}  # fmt: skip
OTHER = "#718096"
GPUS = ("", "24GB", "40GB", "48GB", "80GB", "4090", "A100-80", "H100", "H200")
FLAG = re.compile(r"--(\w+)")


class Rail:
    """Args: page: The form that it describes."""

    def __init__(self, page: NewRunPage) -> None:
        self.page = page
        self.gpu = ""
        with panel(page.text("memory_plan")).classes("plan"):
            choices = {name: name or page.text("this_machine") for name in GPUS}
            gpu = ui.select(
                choices, value="", label=page.text("gpu"), on_change=page.guarded(self._choose_gpu), with_input=True,
                new_value_mode="add-unique",
            )  # fmt: skip
            gpu.classes("w-full gpu").props("dense")
            self.memory = ui.column().classes("w-full gap-1")
        with panel(page.text("problems")):
            self.problems = ui.column().classes("w-full gap-0 problems")
        with panel(page.text("command")):
            self.command = ui.label().classes("log w-full command")
            copy = ui.button(page.text("copy"), icon="content_copy", on_click=self._copy)
            copy.props("flat dense no-caps")
        self._buttons()

    def _buttons(self) -> None:
        page = self.page
        with ui.row().classes("gap-1"):
            start = ui.button(page.text("start"), icon="play_arrow", on_click=page.guarded(lambda *_: page.start()))
            start.props("no-caps").classes("do-start").set_enabled(not page.board.read_only)
            queue = ui.button(page.text("enqueue"), icon="queue", on_click=page.guarded(lambda *_: page.enqueue()))
            queue.props("no-caps outline").classes("do-enqueue").set_enabled(not page.board.read_only)
            save = ui.button(page.text("save_yaml"), icon="download", on_click=page.guarded(lambda *_: page.save()))
            save.props("no-caps flat").classes("do-save")
            with ui.button(page.text("write_job"), icon="dns").props("no-caps flat"), ui.menu():
                for name in ("slurm", "sky", "ray"):
                    ui.menu_item(name, on_click=page.guarded(lambda *_, name=name: page.write_job(name)))
        self._gpu_picker()
        load = ui.upload(on_upload=page.guarded(page.load), auto_upload=True, max_file_size=1_000_000)
        load.props(f'label="{page.text("load_yaml")}" accept=".yaml,.yml,.json" flat bordered').classes(
            "w-full load-yaml"
        )

    def _gpu_picker(self) -> None:
        """The GPUs of this machine to tick, with the memory in use; a text where they are not known."""
        page, gpus = self.page, gpu_states()
        if not gpus:
            ui.input(page.text("gpus"), on_change=lambda event: setattr(page, "gpus", event.value or "")).props("dense")
            return
        shown = {str(one.index): f"{one.index}: {one.name}, {gib(one.used)}/{gib(one.total)}" for one in gpus}
        picker = ui.select(
            shown, multiple=True, label=page.text("gpus"),
            on_change=lambda event: setattr(page, "gpus", ",".join(event.value)),
        )  # fmt: skip
        picker.classes("w-full gpus").props("dense use-chips")

    def show_command(self) -> None:
        try:
            self.command.text = form.command_of(self.page.stage, self.page.values)
        except LlmtuneError as err:
            self.command.text = str(err)

    def _copy(self) -> None:
        ui.clipboard.write(self.command.text)
        ui.notify(self.page.text("copied"))

    async def _choose_gpu(self, event: Any) -> None:
        self.gpu = str(event.value or "")
        await self.plan()
        event.sender.run_method("hidePopup")  # what was typed may open it after Enter, over the advice below

    async def check(self) -> dict[str, str]:
        """Ask the dry run; return the problems by flag, "" for those of none."""
        page = self.page
        found = form.refusals(page.stage, page.values, page.board.root, allow_code=page.board.allow_code)
        lacks: list[str] = []
        if not found:
            if not page.model_name() or "dataset" not in page.values:
                found[""] = page.text("choose_first")
            try:
                facts = await page.board.helper.ask("dry_run", page.stage, form.argv_of(page.values))
                lacks = [*facts["lacks"], *facts["notes"]]
            except LlmtuneError as err:
                for line in str(err).splitlines():
                    flag = FLAG.search(line)
                    found[flag[1] if flag else ""] = line
        self.problems.clear()
        with self.problems:
            for text in found.values():
                ui.label(text).classes("text-negative text-body2 problem")
            for text in lacks:
                ui.label(text).classes("text-warning text-body2")
            if not found:
                ui.label(page.text("no_problems")).classes("text-positive text-body2")
        return found

    async def plan(self) -> None:
        """Ask `plan`, and draw its memory as a bar."""
        page = self.page
        flags = ["--gpu", self.gpu] if self.gpu else []
        self.memory.clear()
        with self.memory:
            ui.label(page.text("estimating")).classes("text-grey")
        try:
            facts = await page.board.helper.ask("plan", page.stage, [*form.argv_of(page.values), *flags])
        except LlmtuneError as err:
            self.memory.clear()
            with self.memory:
                ui.label(str(err)).classes("text-warning text-body2")
            return
        self.memory.clear()
        with self.memory:
            self._bar(facts)

    def _bar(self, facts: dict[str, Any]) -> None:
        page = self.page
        whole = max(facts["usable"], facts["total"])
        with (
            ui.element("div").classes("w-full flex memory-bar").style("height: 18px; background: rgba(128,128,128,.25)")
        ):
            for name, size in facts["memory"].items():
                if size:
                    style = f"width: {100 * size / whole:.2f}%; background: {PARTS.get(name, OTHER)}"
                    with ui.element("div").style(style):
                        ui.tooltip(f"{name} {gib(size)}")
        shown = "  ".join(f"{name} {gib(size)}" for name, size in facts["memory"].items() if size)
        ui.label(shown).classes("text-caption")
        ui.label(page.text("usable", total=gib(facts["total"]), usable=f"{gib(facts['usable'])}, {facts['device']}"))
        hours = page.text("hours", hours=facts["hours"]) if facts["hours"] is not None else ""
        steps = facts["steps"] if facts["steps"] is not None else "?"
        ui.label(page.text("steps_hours", steps=steps, hours=hours)).classes("steps")
        if facts["fits"]:
            ui.label(page.text("fits")).classes("text-positive fits")
            return
        ui.label(page.text("fits_not" if facts["suggestions"] else "no_help")).classes("text-negative fits-not")
        for one in facts["suggestions"]:
            button = ui.button(
                f"{one['flags']}  ({gib(one['total'])})", on_click=lambda _, flags=one["flags"]: page.apply(flags)
            )
            button.props("no-caps dense outline").classes("advice")
