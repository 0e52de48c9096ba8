"""The frame of every page: its head with the ways to the others, language, light or dark, the machine, and errors."""

from __future__ import annotations

import contextlib
import functools
import shutil
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import psutil
from nicegui import context, ui
from nicegui import run as worker

from llmtune.board.machine import gpu_states
from llmtune.board.state import Board
from llmtune.board.texts import text
from llmtune.errors import LlmtuneError
from llmtune.run.sentences import Language

PAGES = {"runs": "/", "new_run": "/new", "compare": "/compare", "chat": "/chat"}
COOKIE = "llmtune_language"
STATE_COLOURS = {
    "finished": "positive", "failed": "negative", "stopped": "warning", "stopping": "warning", "queued": "grey",
}  # fmt: skip
STYLE = """
.nicegui-content { padding: 12px; max-width: 1500px; margin: 0 auto; }
body { overflow-x: hidden; }
.tokens span { white-space: pre-wrap; border-radius: 2px; }
.tokens .t0 { background: rgba(34, 139, 34, .28); } .tokens .t1 { background: rgba(34, 139, 34, .48); }
.tokens, .log { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.log { max-height: 340px; overflow-y: auto; }
.newest-last { max-height: 340px; overflow-y: auto; display: flex; flex-direction: column-reverse; }
.log-lines { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.q-uploader__list { min-height: 0; padding: 0 8px; } .q-uploader { max-height: none; }
.phone-item { border: 1px solid rgba(128, 128, 128, .3); }
.wide { width: 100%; overflow-x: auto; }
.plain { border-spacing: 10px 3px; } .plain tr { vertical-align: top; }
.plain td, .plain th { overflow-wrap: anywhere; max-width: 420px; }
.q-table td, .q-table th { white-space: normal !important; }
"""


class Page:
    """One visit of a page: its board and its language."""

    def __init__(self, board: Board, key: str) -> None:
        self.board = board
        self.key = key
        self.language = _language()

    def text(self, key: str, **values: object) -> str:
        return text(key, self.language, **values)

    @contextlib.contextmanager
    def frame(self) -> Iterator[None]:
        """The head, and below it the content of the block."""
        ui.page_title(f"{self.text(self.key)} · llmtune")
        ui.add_css(STYLE)
        ui.colors(primary="#2b6cb0")
        dark = ui.dark_mode(None)
        with ui.header().classes("items-center q-py-xs q-px-sm gap-1").props("role=banner"):
            ui.label("llmtune").classes("text-bold gt-xs q-mr-sm")
            for key, path in PAGES.items():
                link = ui.link(self.text(key), path).classes("text-white q-px-xs").style("text-decoration: none")
                link.classes("text-bold" if key == self.key else "")
            ui.space()
            if self.board.read_only:
                ui.badge(self.text("read_only"), color="orange")
            self._machine()
            ui.button(self.text("language"), on_click=self._switch_language).props("flat dense no-caps color=white")
            toggle = ui.button(icon="contrast", on_click=lambda: dark.set_value(not dark.value))
            toggle.props(f'flat dense round color=white aria-label="{self.text("dark")}"')
        yield

    def _machine(self) -> None:
        label = ui.label().classes("text-caption gt-sm")

        async def refresh() -> None:
            gpus = await worker.io_bound(gpu_states) or []
            memory = psutil.virtual_memory()
            free = shutil.disk_usage(self.board.root).free
            cpu = f"{self.text('cpu')} {psutil.cpu_percent():.0f} %"
            used = f"{self.text('memory')} {gib(memory.total - memory.available)}/{gib(memory.total)}"
            shown = [f"GPU {one.index} {gib(one.used)}/{gib(one.total)}" for one in gpus]
            label.text = " · ".join([cpu, used, *shown, f"{gib(free)} {self.text('disk')}"])

        ui.timer(5.0, refresh)

    def _switch_language(self) -> None:
        other = "en" if self.language == "zh" else "zh"
        cookie = f"{COOKIE}={other}; path=/; max-age=31536000; SameSite=Strict"
        ui.run_javascript(f"document.cookie = '{cookie}'; location.reload()")

    def guarded(self, work: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """Return an event handler that shows errors as one line on the page."""

        @functools.wraps(work)
        async def handle(*values: Any) -> None:
            try:
                found = work(*values)
                if isinstance(found, Awaitable):
                    await found
            except LlmtuneError as err:
                self.complain(str(err))
            except (OSError, ValueError, KeyError) as err:
                traceback.print_exc()
                self.complain(f"{type(err).__name__}: {err}")

        return handle

    def complain(self, message: str) -> None:
        ui.notify(message, type="negative", multi_line=True, timeout=12_000, close_button=True)

    def plain_table(self, head: list[str], rows: list[list[str]]) -> None:
        """A table of texts, which scrolls by itself where it is wide."""
        with ui.element("div").classes("wide"), ui.element("table").classes("plain w-full text-left text-body2"):
            for place, row in enumerate([head, *rows]):
                with ui.element("tr"):
                    for cell in row:
                        with ui.element("td" if place else "th"):
                            ui.label(cell)


def _language() -> Language:
    request = context.client.request
    chosen = request.cookies.get(COOKIE)
    if chosen in ("en", "zh"):
        return "zh" if chosen == "zh" else "en"
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


def gib(size: float) -> str:
    """A size in GiB, or MiB below one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def address(path: str, **query: str | list[str]) -> str:
    """The URL of a page."""
    return f"{path}?{urlencode(query, doseq=True)}" if query else path


def panel(title: str) -> Any:
    """A part of the page with a title."""
    made = ui.card().classes("w-full q-pa-sm gap-2")
    if title:
        with made:
            ui.label(title).classes("text-subtitle1 text-bold")
    return made


def state_badge(page: Page, state: str) -> Any:
    return ui.badge(page.text(state), color=STATE_COLOURS.get(state, "primary")).classes(f"state state-{state}")
