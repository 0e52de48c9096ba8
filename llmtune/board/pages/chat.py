"""A conversation with up to four models side by side, each in a child `llmtune serve`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import ui

from llmtune.board.pages.frame import Page, gib, panel
from llmtune.board.pages.preview import tokens_html
from llmtune.board.security import inside
from llmtune.board.servers import MOST, Server
from llmtune.board.state import Board
from llmtune.checkpoint import numbered_checkpoints
from llmtune.errors import LlmtuneError, UsageError
from llmtune.models.info import MODEL_MAPPING
from llmtune.run.found import find_runs

MOST_IMAGE = 20 << 20


def register(board: Board) -> None:
    @ui.page("/chat")
    async def chat(f: str = "") -> None:
        await ChatPage(board, f).show()


class ChatPage(Page):
    def __init__(self, board: Board, chosen: str) -> None:
        super().__init__(board, "chat")
        self.chosen = chosen
        self.seats: list[Seat] = []
        self.image: str | None = None

    async def show(self) -> None:
        with self.frame():
            self._settings()
            self.grid = ui.element("div").classes("w-full grid gap-2 seats")
            with ui.footer().classes("q-pa-sm items-center").props("bordered").style("background: inherit"):
                self.box = ui.textarea(placeholder=self.text("ask")).props("autogrow dense outlined rows=1")
                self.box.props(f'aria-label="{self.text("ask")}"').classes("grow question").style("min-width: 0")
                self.box.on("keydown.enter.prevent.exact", self.guarded(lambda *_: self.send()))
                send = ui.button(icon="send", on_click=self.guarded(lambda *_: self.send()))
                send.props(f'round aria-label="{self.text("send")}"').classes("do-send")
        for name in list(self.board.servers.loaded) or [self.chosen]:
            self._add(name)
        if self.chosen and self.chosen not in self.board.servers.loaded:
            seat = next((one for one in self.seats if one.name == self.chosen), None) or self._add(self.chosen)
            ui.timer(0.1, self.guarded(seat.load), once=True)

    def _settings(self) -> None:
        with ui.row().classes("w-full items-center gap-2"):
            self.system = ui.input(self.text("system")).props("dense clearable").classes("grow")
            self.temperature = ui.number(self.text("temperature"), value=0, min=0, max=2, step=0.1).props("dense")
            self.tokens = ui.number(self.text("max_tokens"), value=256, min=1, step=1).props("dense")
            self.as_tokens = ui.checkbox(self.text("as_tokens"))
            add = ui.button(icon="add", on_click=self.guarded(lambda *_: self._add("")))
            add.props(f'round dense aria-label="{self.text("up_to_four")}"').classes("do-add")
            ui.button(self.text("clear"), on_click=self._clear).props("flat dense no-caps")
        with ui.expansion(self.text("tools")).classes("w-full").props("dense"):
            self.tools = ui.textarea(self.text("tools")).props("dense autogrow").classes("w-full tools")
            image = ui.upload(on_upload=self.guarded(self._take_image), auto_upload=True, max_file_size=MOST_IMAGE)
            image.props(f'label="{self.text("image")}" accept="image/*" flat bordered')

    def _add(self, name: str) -> Seat:
        if len(self.seats) >= MOST:
            raise UsageError(self.text("up_to_four"))
        with self.grid:
            seat = Seat(self, name)
        self.seats.append(seat)
        wide = {1: "grid-cols-1", 2: "grid-cols-1 md:grid-cols-2", 3: "grid-cols-1 md:grid-cols-3"}
        self.grid.classes(replace="w-full grid gap-2 seats " + wide.get(len(self.seats), "grid-cols-1 md:grid-cols-4"))
        return seat

    def choices(self) -> dict[str, str]:
        """Checkpoints of the root, and keys of models."""
        found: dict[str, str] = {}
        for run in find_runs(self.board.root):
            for folder in reversed(numbered_checkpoints(run.folder)):
                found[self.board.shown(folder)] = f"{run.name} {folder.name}"
        return found | {key: key for key in MODEL_MAPPING}

    async def _take_image(self, event: Any) -> None:
        content = await event.file.read()
        kind = event.file.content_type or "image/png"
        self.image = f"data:{kind};base64,{base64.b64encode(content).decode()}"

    def _clear(self) -> None:
        for seat in self.seats:
            seat.clear()

    async def send(self) -> None:
        """Ask all loaded models."""
        question = str(self.box.value or "").strip()
        ready = [seat for seat in self.seats if seat.server is not None and seat.server.ready]
        if not question:
            return
        if not ready:
            is_loading = any(seat.server is not None for seat in self.seats)
            raise UsageError(self.text("still_loading" if is_loading else "no_server"))
        self.box.set_value("")
        content: Any = question
        if self.image is not None:
            parts = [{"type": "image_url", "image_url": {"url": self.image}}, {"type": "text", "text": question}]
            content, self.image = parts, None
        body = self.body()
        for seat in ready:
            seat.add_user(question, content)
        await asyncio.gather(*(seat.answer(body) for seat in ready))

    def body(self) -> dict[str, Any]:
        """The request without its messages."""
        found: dict[str, Any] = {"temperature": float(self.temperature.value or 0), "logprobs": True}
        found["max_tokens"] = int(self.tokens.value or 256)
        if text := str(self.tools.value or "").strip():
            try:
                found["tools"] = json.loads(text)
            except ValueError as err:
                raise UsageError(self.text("bad_json")) from err
        return found


class Seat:
    """One model with its conversation."""

    def __init__(self, page: ChatPage, name: str) -> None:
        self.page = page
        self.name = name
        self.messages: list[dict[str, Any]] = []
        with panel("").classes("seat"):
            choices = page.choices()
            options = choices if not name or name in choices else choices | {name: name}
            self.select = ui.select(options, value=name or None, with_input=True, label=page.text("choose_checkpoint"))
            self.select.classes("w-full checkpoint").props("dense")
            with ui.row().classes("items-center gap-1"):
                self.button = ui.button(on_click=page.guarded(lambda *_: self.toggle())).props("no-caps dense outline")
                self.button.classes("do-load")
                self.memory = ui.label().classes("text-caption memory")
            self.talk = ui.column().classes("w-full gap-1 talk")
        self.refresh()
        ui.timer(2.0, self.refresh)

    @property
    def server(self) -> Server | None:
        return self.page.board.servers.loaded.get(self.name)

    def refresh(self) -> None:
        server = self.server
        is_ready = server is not None and server.ready
        self.button.text = self.page.text("unload" if is_ready else "load")
        is_loading = server is not None and not is_ready
        self.button.props("loading") if is_loading else self.button.props(remove="loading")
        self.memory.text = "" if server is None else self.page.text("holds", memory=gib(server.memory))

    async def toggle(self) -> None:
        if self.server is not None:
            await self.page.board.servers.unload(self.name)
            self.refresh()
        else:
            self.name = str(self.select.value or "")
            await self.load()

    async def load(self) -> None:
        """Start the server of the chosen model."""
        self.page.board.check_may_change()
        if not self.name:
            raise UsageError(self.page.text("no_server"))
        self.button.props("loading")
        try:
            await self.page.board.servers.load(self.name, self._flags())
        finally:
            self.refresh()

    def _flags(self) -> list[str]:
        if self.name in MODEL_MAPPING:
            return ["--model_type", self.name]
        folder = inside(self.page.board.root, self.name)
        if not Path(folder).is_dir():
            raise UsageError(f"There is no folder {self.name}.")
        return ["--ckpt_dir", str(folder)]

    def clear(self) -> None:
        self.messages.clear()
        self.talk.clear()

    def add_user(self, shown: str, content: Any) -> None:
        self.messages.append({"role": "user", "content": content})
        with self.talk:
            ui.label(shown).classes("self-end q-pa-sm rounded user").style(
                "background: rgba(43,108,176,.18); white-space: pre-wrap"
            )

    async def answer(self, body: dict[str, Any]) -> None:
        """Ask, and show the response as it comes."""
        server = self.server
        if server is None:
            return
        system = str(self.page.system.value or "")
        messages = ([{"role": "system", "content": system}] if system else []) + self.messages
        with self.talk:
            response = Response(self.page.text, bool(self.page.as_tokens.value))
        try:
            async for choice in self.page.board.servers.ask(server, body | {"messages": messages}):
                response.take(choice)
        except LlmtuneError as err:
            response.fail(str(err))
            self.messages.pop()
            return
        self.messages.append(response.message())
        if response.calls:
            with self.talk:
                response.ask_results(lambda results: self._results(results, body))

    async def _results(self, results: list[dict[str, Any]], body: dict[str, Any]) -> None:
        self.messages += results
        await self.answer(body)


class Response:
    """A response while it is generated: its thought folded, its tool calls, its text plain or as tokens."""

    def __init__(self, text: Callable[..., str], as_tokens: bool) -> None:
        self._text = text
        self.content = self.thought = ""
        self.calls: dict[int, dict[str, Any]] = {}
        self.tokens: list[dict[str, Any]] = []
        self.as_tokens = as_tokens
        with ui.column().classes("w-full gap-0 q-pa-sm rounded assistant").style("background: rgba(128,128,128,.13)"):
            self.folded = ui.expansion(text("thought")).classes("w-full thought").props("dense")
            with self.folded:
                self.thought_label = ui.label().style("white-space: pre-wrap")
            self.folded.set_visibility(False)
            self.label = ui.label().classes("response").style("white-space: pre-wrap; overflow-wrap: anywhere")
            self.html = ui.html("", sanitize=False).classes("tokens")
            self.calls_label = ui.label().classes("log calls")

    def take(self, choice: dict[str, Any]) -> None:
        """Add a piece of the stream."""
        delta = choice.get("delta") or {}
        self.content += delta.get("content") or ""
        self.thought += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls") or []:
            own = self.calls.setdefault(
                call.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            )
            own["id"] = call.get("id") or own["id"]
            for name in ("name", "arguments"):
                own["function"][name] += (call.get("function") or {}).get(name) or ""
        for one in (choice.get("logprobs") or {}).get("content") or []:
            self.tokens.append({"text": one["token"], "trainable": True})
        self._show()

    def _show(self) -> None:
        if self.thought:
            self.folded.set_visibility(True)
            self.thought_label.text = self.thought
        if self.as_tokens:
            self.html.content = tokens_html(self.tokens)
        else:
            self.label.text = self.content
        if self.calls:
            calls = [f"{one['function']['name']}({one['function']['arguments']})" for one in self.calls.values()]
            self.calls_label.text = f"{self._text('tool_call')}: " + "\n".join(calls)

    def fail(self, problem: str) -> None:
        self.label.text = problem
        self.label.classes("text-negative")

    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            found["tool_calls"] = list(self.calls.values())
        return found

    def ask_results(self, answered: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Let the visitor type what the tools return."""
        boxes = [
            (call, ui.input(call["function"]["name"]).classes("w-full result").props("dense"))
            for call in self.calls.values()
        ]

        async def send() -> None:
            results = [
                {"role": "tool", "tool_call_id": call["id"], "content": str(box.value or "")} for call, box in boxes
            ]
            button.set_enabled(False)
            await answered(results)

        button = ui.button(self._text("send"), on_click=send).props("no-caps dense outline")
