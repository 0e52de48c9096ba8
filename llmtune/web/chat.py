"""The chat: settings in the sidebar, the conversation in the middle with one column per model, the input box below."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import streamlit as st

from llmtune.errors import LlmtuneError
from llmtune.inference.engine import Engine
from llmtune.inference.sampling import Sampling
from llmtune.web.history import ChatHistory, Turn
from llmtune.web.images import KINDS, keep_pictures

MAX_NEW_TOKENS = 4096
MAX_QUESTION = 200_000
"""Characters."""
CHAT_HEIGHT = 300
"""Pixels, where the style sheet below does not apply. The conversation scrolls inside, so that the buttons keep their
position during a generation."""
STYLE = """<style>
.stMainBlockContainer { padding-top: 3rem; padding-bottom: 0; --rest: 18rem; }
@media (max-width: 640px) { .stMainBlockContainer { padding-top: 3.75rem; --rest: 20.5rem; } }
[data-testid="stBottomBlockContainer"] { padding-top: 0; padding-bottom: 1.5rem; }
div:has(> .st-key-conversation), .st-key-conversation {
    height: calc(100dvh - var(--rest)) !important; flex-basis: calc(100dvh - var(--rest)) !important; min-height: 8rem;
}
</style>"""
"""The conversation takes what title, buttons and input box leave of the window."""


@dataclass(frozen=True)
class Choices:
    """Current settings of the sidebar. `models`: one, or two side by side. `is_plain`: responses are not Markdown."""

    models: list[str]
    system: str | None
    sampling: Sampling
    is_plain: bool = False


def settings(engine: Engine, names: dict[str, str | None], defaults: Sampling, texts: dict[str, str]) -> Choices:
    """Draw the sidebar. `names`: the page's name of a model -> the engine's."""
    with st.sidebar:
        first = st.selectbox(texts["model"], list(names), key="model")
        others = [texts["nothing"], *(name for name in names if name != first)]
        second = st.selectbox(texts["compare"], others, key="compare") if len(names) > 1 else texts["nothing"]
        system = _system(engine, names[first], texts)
        sampling = _sampling(defaults, texts)
        is_plain = st.toggle(texts["plain"], key="plain")
    return Choices([first] if second == texts["nothing"] else [first, second], system, sampling, is_plain)


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


def how_it_samples(sampling: Sampling, texts: dict[str, str]) -> str:
    """One line on how the next token is chosen."""
    if not sampling.do_sample:
        return texts["greedy"]
    parts = [texts["samples"].format(temperature=f"{sampling.temperature:g}")]
    if sampling.top_p < 1:
        parts.append(f"top p {sampling.top_p:g}")
    if sampling.top_k:
        parts.append(f"top k {sampling.top_k}")
    return ", ".join(parts)


def chat(
    engine: Engine, names: dict[str, str | None], choices: Choices, history: ChatHistory, texts: dict[str, str]
) -> None:
    """Show the conversation, take a question, and generate the responses of the chosen models."""
    st.html(STYLE)
    st.caption(how_it_samples(choices.sampling, texts))
    # Drawn first, filled last: generation takes long.
    chat_area = st.container(height=CHAT_HEIGHT, autoscroll=True, key="conversation")
    _buttons(history, texts)
    _ask(engine, history, texts)
    with chat_area:
        for turn in history.turns[:-1]:
            _show(turn, choices, texts)
        if history.turns:
            _last(engine, names, history, choices, texts)


def _ask(engine: Engine, history: ChatHistory, texts: dict[str, str]) -> None:
    """Draw the input box, with a + for images where the model supports them, and return the input."""
    _give_back(texts)
    if engine.template.media is None:
        if question := st.chat_input(texts["ask"], key="question", max_chars=MAX_QUESTION):
            history.ask(question)
    elif sent := st.chat_input(
        texts["ask"], key="question", max_chars=MAX_QUESTION, accept_file="multiple", file_type=KINDS
    ):
        images, broken = keep_pictures(sent.files)
        if broken:
            st.session_state["refused"] = (sent.text, broken)
            st.rerun()
        history.ask(sent.text, images)


def _give_back(texts: dict[str, str]) -> None:
    """Put the text of a question with a broken image back into the box; it was not sent."""
    if refused := st.session_state.pop("refused", None):
        st.session_state["question"], broken = refused
        for name in broken:
            st.error(texts["no_picture"].format(name=name))


def _buttons(history: ChatHistory, texts: dict[str, str]) -> None:
    """Draw the Stop button: a click interrupts the generation, reruns the page and keeps the text so far."""
    with st.container(horizontal=True):
        st.button(texts["stop"], key="stop", on_click=history.stop)
        st.button(texts["retry"], key="retry", on_click=history.forget_answers)
        st.button(texts["clear"], key="clear", on_click=history.turns.clear)


def _show(turn: Turn, choices: Choices, texts: dict[str, str]) -> None:
    _question(turn)
    for name, column in zip(choices.models, st.columns(len(choices.models)), strict=True):
        with column, st.chat_message("assistant"):
            _title(name, choices.models)
            if name in turn.answers:
                _answer(turn, name, choices, texts)


def _last(
    engine: Engine, names: dict[str, str | None], history: ChatHistory, choices: Choices, texts: dict[str, str]
) -> None:
    """Draw the last turn; missing responses are generated now."""
    turn = history.turns[-1]
    _question(turn)
    missing = [name for name in choices.models if name not in turn.answers or name in history.unfinished]
    history.unfinished = list(missing)
    for name, column in zip(choices.models, st.columns(len(choices.models)), strict=True):
        with column, st.chat_message("assistant"):
            _title(name, choices.models)
            place = st.empty()
            if name in missing:
                _write(engine, names[name], name, history, choices, place)
            place.empty()
            with place.container():
                _answer(turn, name, choices, texts)


def _write(engine: Engine, adapter: str | None, name: str, history: ChatHistory, choices: Choices, place: Any) -> None:
    """Generate a response; the page may be drawn anew meanwhile, and the conversation open in two windows."""
    turn = history.turns[-1]
    template = engine.adapters.template(adapter)
    mine = turn.writers[name] = object()
    turn.answers[name] = text = ""
    turn.stopped.discard(name)
    try:
        row = history.conversation(name, system=choices.system, several_turns=template.info.chat_sep is not None)
        with closing(engine.stream(row, choices.sampling, adapter=adapter)) as pieces:
            for piece in pieces:
                if turn.writers.get(name) is not mine:
                    return
                turn.answers[name] = text = text + piece
                _draw(text + " ▌", choices, place)
    except LlmtuneError as err:
        turn.answers[name] = f"⚠ {err}"
    history.unfinished = [one for one in history.unfinished if one != name]


def _question(turn: Turn) -> None:
    with st.chat_message("user"):
        for image in turn.images:
            st.image(image, width=240)
        st.text(turn.question)  # as it was typed: as Markdown, $x^2$ would be a formula


def _title(name: str, models: list[str]) -> None:
    if len(models) > 1:
        st.caption(name)


def _answer(turn: Turn, name: str, choices: Choices, texts: dict[str, str]) -> None:
    _draw(turn.answers.get(name, ""), choices, st)
    if name in turn.stopped:
        st.caption(texts["stopped"])


def _draw(text: str, choices: Choices, place: Any) -> None:
    place.text(text) if choices.is_plain else place.markdown(text)
