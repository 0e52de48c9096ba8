"""The chat tab: settings in the sidebar, the conversation in the middle, one column per model."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import streamlit as st

from llmtune.data.image_marks import MARK, with_all_marks
from llmtune.errors import LlmtuneError
from llmtune.inference.engine import Engine
from llmtune.inference.sampling import Sampling
from llmtune.types import Conversation, Media, Message

MAX_NEW_TOKENS = 4096
CHAT_HEIGHT = 480
"""Pixels. The conversation scrolls inside, so that the buttons below keep their position during a generation."""


@dataclass(frozen=True)
class Choices:
    """Current settings of the sidebar. `models`: one, or two side by side."""

    models: list[str]
    system: str | None
    sampling: Sampling


def settings(engine: Engine, names: dict[str, str | None], defaults: Sampling, texts: dict[str, str]) -> Choices:
    """Draw the sidebar. `names`: the page's name of a model -> the engine's."""
    with st.sidebar:
        first = st.selectbox(texts["model"], list(names), key="model")
        others = [texts["nothing"], *(name for name in names if name != first)]
        second = st.selectbox(texts["compare"], others, key="compare") if len(names) > 1 else texts["nothing"]
        system = _system(engine, names[first], texts)
        sampling = _sampling(defaults, texts)
    return Choices([first] if second == texts["nothing"] else [first, second], system, sampling)


def _system(engine: Engine, name: str | None, texts: dict[str, str]) -> str | None:
    template = engine.adapters.template(name)
    if not (template.info.has_system_slot or template.info.from_tokenizer):
        st.caption(texts["no_system"])
        return None
    shown = template.system or template.info.default_system or ""
    return st.text_area(texts["system"], placeholder=shown, help=texts["system_help"], key="system").strip() or None


def _sampling(defaults: Sampling, texts: dict[str, str]) -> Sampling:
    length = min(defaults.max_new_tokens, MAX_NEW_TOKENS)
    start = defaults.temperature if defaults.do_sample else 0.0
    max_new_tokens = st.slider(texts["max_new_tokens"], 1, MAX_NEW_TOKENS, length, key="max_new_tokens")
    temperature = st.slider(
        texts["temperature"], 0.0, 2.0, float(start), 0.05, help=texts["temperature_help"], key="temperature"
    )
    top_p = st.slider(texts["top_p"], 0.05, 1.0, float(defaults.top_p), 0.05, key="top_p")
    top_k = st.slider(texts["top_k"], 0, 200, min(defaults.top_k, 200), key="top_k")
    penalty = st.slider(
        texts["repetition_penalty"], 1.0, 2.0, float(defaults.repetition_penalty), 0.05, key="repetition_penalty"
    )
    return Sampling(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=penalty,
    )


def chat_tab(engine: Engine, names: dict[str, str | None], choices: Choices, texts: dict[str, str]) -> None:
    """Show the conversation, take a question, and generate the responses of the chosen models."""
    chat: ChatHistory = st.session_state.setdefault("chat", ChatHistory())
    chat_area = st.container(height=CHAT_HEIGHT, autoscroll=True)  # drawn first, filled last: generation takes long
    _buttons(chat, texts)
    _ask(engine, chat, texts)
    with chat_area:
        for turn in chat.turns[:-1]:
            _show(turn, choices.models, texts)
        if chat.turns:
            _last(engine, names, chat, choices, texts)


def _ask(engine: Engine, chat: ChatHistory, texts: dict[str, str]) -> None:
    """Draw the input box, with a + for images where the model supports them, and return the input."""
    _give_back(texts)
    if engine.template.media is None:
        if question := st.chat_input(texts["ask"], key="question"):
            chat.ask(question)
    elif sent := st.chat_input(texts["ask"], key="question", accept_file="multiple", file_type=KINDS):
        images, broken = keep_pictures(sent.files)
        if broken:
            st.session_state["refused"] = (sent.text, broken)
            st.rerun()
        chat.ask(sent.text, images)


def _give_back(texts: dict[str, str]) -> None:
    """Put the text of a question with a broken image back into the box; it was not sent."""
    if refused := st.session_state.pop("refused", None):
        st.session_state["question"], broken = refused
        for name in broken:
            st.error(texts["no_picture"].format(name=name))


def _buttons(chat: ChatHistory, texts: dict[str, str]) -> None:
    """Draw the Stop button: a click interrupts the generation, reruns the page and keeps the text so far."""
    stop, retry, clear = st.columns(3)
    stop.button(texts["stop"], key="stop", width="stretch", on_click=_stop, args=(chat,))
    retry.button(texts["retry"], key="retry", width="stretch", on_click=chat.forget_answers)
    clear.button(texts["clear"], key="clear", width="stretch", on_click=chat.turns.clear)


def _stop(chat: ChatHistory) -> None:
    if chat.turns:
        turn = chat.turns[-1]
        for name in st.session_state.get("unfinished", ()):
            turn.answers.setdefault(name, "")
            turn.stopped.add(name)
    st.session_state["unfinished"] = []


def _show(turn: Turn, models: list[str], texts: dict[str, str]) -> None:
    _question(turn)
    for name, column in zip(models, st.columns(len(models)), strict=True):
        with column, st.chat_message("assistant"):
            _title(name, models)
            if name in turn.answers:
                _answer(turn, name, texts)


def _last(
    engine: Engine, names: dict[str, str | None], chat: ChatHistory, choices: Choices, texts: dict[str, str]
) -> None:
    """Draw the last turn; missing responses are generated now."""
    turn = chat.turns[-1]
    _question(turn)
    missing = [name for name in choices.models if name not in turn.answers or name in _unfinished()]
    st.session_state["unfinished"] = list(missing)
    for name, column in zip(choices.models, st.columns(len(choices.models)), strict=True):
        with column, st.chat_message("assistant"):
            _title(name, choices.models)
            place = st.empty()
            if name in missing:
                _write(engine, names[name], name, chat, choices, place)
            place.empty()
            with place.container():
                _answer(turn, name, texts)


def _unfinished() -> list[str]:
    return list(st.session_state.get("unfinished", ()))


def _write(engine: Engine, adapter: str | None, name: str, chat: ChatHistory, choices: Choices, place: Any) -> None:
    turn = chat.turns[-1]
    template = engine.adapters.template(adapter)
    turn.answers[name] = ""
    turn.stopped.discard(name)
    try:
        row = chat.conversation(name, system=choices.system, several_turns=template.info.chat_sep is not None)
        with closing(engine.stream(row, choices.sampling, adapter=adapter)) as pieces:
            for piece in pieces:
                turn.answers[name] += piece
                place.markdown(turn.answers[name] + " ▌")
    except LlmtuneError as err:
        turn.answers[name] = f"⚠ {err}"
    st.session_state["unfinished"] = [one for one in _unfinished() if one != name]


def _question(turn: Turn) -> None:
    with st.chat_message("user"):
        for image in turn.images:
            st.image(image, width=240)
        st.markdown(turn.question)


def _title(name: str, models: list[str]) -> None:
    if len(models) > 1:
        st.caption(name)


def _answer(turn: Turn, name: str, texts: dict[str, str]) -> None:
    st.markdown(turn.answers.get(name, ""))
    if name in turn.stopped:
        st.caption(texts["stopped"])


# The conversation on the page: questions, and the responses of each model side by side


@dataclass
class Turn:
    """A question, and the response of each model. `stopped`: models whose generation was interrupted."""

    question: str
    images: tuple[str, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)


@dataclass
class ChatHistory:
    """Conversation. Each model's history has its own responses; where it has none, those that the page shows first."""

    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, images: tuple[str, ...] = ()) -> None:
        self.turns.append(Turn(question, images))

    def conversation(self, model: str, *, system: str | None, several_turns: bool) -> Conversation:
        """Return the conversation for `model` to answer the last question."""
        turns = self.turns if several_turns else self.turns[-1:]
        messages = [] if system is None else [Message("system", system)]
        images: list[str] = []
        for turn in turns:
            unmarked = len(turn.images) - len(MARK.findall(turn.question))  # the question may contain marks already
            messages.append(Message("user", "<image>" * unmarked + turn.question))
            images += turn.images
            if turn is not turns[-1]:
                answer = turn.answers.get(model) or next(iter(turn.answers.values()), "")
                messages.append(Message("assistant", answer))
        whole = Conversation(tuple(messages), media=tuple(map(Media, images)))
        return with_all_marks(whole) if images else whole

    def forget_answers(self) -> None:
        """Regenerate the responses to the last question."""
        if self.turns:
            self.turns[-1] = replace(self.turns[-1], answers={}, stopped=set())


# Uploaded images: kept while the page runs, and checked before a model receives them


KINDS = ("png", "jpg", "jpeg", "webp")


def keep_pictures(files: Iterable[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (paths of the images among Streamlit's uploaded `files`, names of the other files)."""
    paths, broken = [], []
    for file in files:
        path = Path(_folder().name) / f"{file.file_id}{Path(file.name).suffix}"
        path.write_bytes(file.getvalue())
        if _is_picture(path):
            paths.append(str(path))
        else:
            path.unlink()
            broken.append(file.name)
    return tuple(paths), tuple(broken)


@st.cache_resource  # type: ignore[untyped-decorator]
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of all visitors' images; it is removed when the page ends."""
    return tempfile.TemporaryDirectory(prefix="llmtune-web-")


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.verify()
    except Exception:  # a reader may raise anything for a broken file
        return False
    return True
