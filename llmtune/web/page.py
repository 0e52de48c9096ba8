"""The Streamlit page. `llmtune web` starts it with its own flags after `--`."""

from __future__ import annotations

import hmac
import sys
from pathlib import Path

import streamlit as st

from llmtune.arguments.parser import parse
from llmtune.arguments.service import WebArguments
from llmtune.errors import LlmtuneError
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.utils.logging import quiet_libraries
from llmtune.web.chat_tab import chat_tab, settings
from llmtune.web.texts import TEXTS, Key
from llmtune.web.training_tab import training_tab


@st.cache_resource  # type: ignore[untyped-decorator]
def _arguments(argv: tuple[str, ...]) -> WebArguments:
    return parse(WebArguments, argv, command="web")


@st.cache_resource(show_spinner="Loading the model")  # type: ignore[untyped-decorator]
def _engine(argv: tuple[str, ...]) -> Engine:
    """Load the engine, once per process, for all visitors."""
    quiet_libraries()
    args = _arguments(argv)
    return load_engine(args, args.adapter_args)


def page(argv: tuple[str, ...]) -> None:
    """Draw the page for one visitor; Streamlit calls it at every click."""
    st.set_page_config(page_title="llmtune", layout="wide")
    args = _arguments(argv)
    texts = TEXTS[args.lang]
    if args.api_key is not None and not _may_enter(args.api_key, texts):
        return
    try:
        engine = _engine(argv)
    except LlmtuneError as err:
        st.error(str(err))
        return
    st.title(args.main_name)
    names: dict[str, str | None] = {args.main_name: None, **{name: name for name in engine.adapters}}
    choices = settings(engine, names, Sampling.of(args), texts)
    chat, training = st.tabs([texts["chat"], texts["training"]])
    with chat:
        chat_tab(engine, names, choices, texts)
    with training:
        training_tab(_runs_folder(args), texts)


def _may_enter(key: str, texts: dict[Key, str]) -> bool:
    given = st.session_state.get("entered", "")
    if not given:
        given = st.text_input(texts["key"], type="password")
    if given and hmac.compare_digest(given.encode(), key.encode()):
        if "entered" not in st.session_state:
            st.session_state["entered"] = given
            st.rerun()
        return True
    if given:
        st.error(texts["wrong_key"])
    return False


def _runs_folder(args: WebArguments) -> Path:
    if args.run_dir is not None:
        return Path(args.run_dir)
    if args.ckpt_dir is not None and (Path(args.ckpt_dir).parent / "logging.jsonl").is_file():
        return Path(args.ckpt_dir).parent
    return Path("output")


if __name__ == "__main__":
    page(tuple(sys.argv[1:]))
