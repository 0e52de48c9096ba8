"""The Streamlit page. `llmtune web` starts it with its own flags after `--`."""

from __future__ import annotations

import hmac
import sys

import streamlit as st

from llmtune.arguments.parser import parse
from llmtune.arguments.service import WebArguments
from llmtune.errors import LlmtuneError
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine, load_scorer
from llmtune.inference.sampling import Sampling
from llmtune.inference.score import Scorer
from llmtune.utils.logging import quiet_libraries
from llmtune.web.chat import chat, settings
from llmtune.web.history import ChatHistory, Conversations, browser_token
from llmtune.web.scores import score_form

COOKIE = "_streamlit_xsrf"
ID = "chat"
"""Name of the conversation's id in the address."""

TEXTS = {
    "score": ("Score", "分数"),
    "prompt": ("Prompt", "提示"),
    "response": ("Response", "回答"),
    "scores_only": (
        "This is a reward model: it scores responses, and writes none. The higher the score, the better.",
        "这是奖励模型:只为回答打分,不生成回答。分数越高越好。",
    ),
    "model": ("Model", "模型"),
    "compare": ("Compare with", "对比"),
    "nothing": ("nothing", "不对比"),
    "system": ("System prompt", "系统提示词"),
    "system_help": ("Empty: that of training.", "留空:与训练时相同。"),
    "no_system": ("The template of this model has no slot for a system prompt.", "该模型的模板没有系统提示词的位置。"),
    "max_new_tokens": ("Max new tokens", "最大生成长度"),
    "temperature": ("Temperature", "温度"),
    "temperature_help": ("0 always takes the most likely token.", "0 表示总取概率最大的词元。"),
    "top_p": ("Top p", "Top p"),
    "top_k": ("Top k (0: all)", "Top k(0 表示全部)"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "ask": ("Ask something", "请输入问题"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重新生成"),
    "clear": ("Clear", "清空"),
    "stopped": ("[stopped]", "[已停止]"),
    "no_picture": (
        "{name} is not a readable image. Ask again without it.",
        "{name} 不是可读取的图片,请去掉后重新提问。",
    ),
    "greedy": (
        "Greedy: always the most likely token. A temperature above 0 samples.",
        "贪心解码:总取概率最大的词元。把温度调到 0 以上即为采样。",
    ),
    "samples": ("Sampling at temperature {temperature}", "采样,温度 {temperature}"),
    "plain": ("Responses as plain text", "回答按纯文本显示"),
    "key": ("Access key", "访问密钥"),
    "wrong_key": ("Wrong key.", "密钥不对。"),
}
"""Texts of the page, (English, Chinese)."""


@st.cache_resource  # type: ignore[untyped-decorator]
def _arguments(argv: tuple[str, ...]) -> WebArguments:
    return parse(WebArguments, argv, command="web")


@st.cache_resource(show_spinner="Loading the model")  # type: ignore[untyped-decorator]
def _engine(argv: tuple[str, ...]) -> Engine:
    """Load the engine, once per process, for all visitors."""
    quiet_libraries()
    args = _arguments(argv)
    return load_engine(args, args.adapter_args)


@st.cache_resource(show_spinner="Loading the model")  # type: ignore[untyped-decorator]
def _scorer(argv: tuple[str, ...]) -> Scorer:
    """Load the reward model, once per process, for all visitors."""
    quiet_libraries()
    return load_scorer(_arguments(argv))


def page(argv: tuple[str, ...]) -> None:
    """Draw the page for one visitor; Streamlit calls it at every click."""
    st.set_page_config(page_title="llmtune", layout="wide")
    args = _arguments(argv)
    texts = {key: pair[args.lang == "zh"] for key, pair in TEXTS.items()}
    history = _entered(args.api_key, texts)
    if history is None:
        return
    draw = _score_page if args.scores else _chat_page
    try:
        draw(argv, args, history, texts)
    except LlmtuneError as err:
        st.error(str(err))


def _score_page(argv: tuple[str, ...], args: WebArguments, history: ChatHistory, texts: dict[str, str]) -> None:
    scorer = _scorer(argv)
    st.title(args.main_name)
    score_form(scorer, texts)


def _chat_page(argv: tuple[str, ...], args: WebArguments, history: ChatHistory, texts: dict[str, str]) -> None:
    engine = _engine(argv)
    st.subheader(args.main_name, anchor=False)
    names: dict[str, str | None] = {args.main_name: None, **{name: name for name in engine.adapters}}
    choices = settings(engine, names, Sampling.of(args), texts)
    chat(engine, names, choices, history, texts)


@st.cache_resource  # type: ignore[untyped-decorator]
def _conversations() -> Conversations:
    return Conversations()


def _entered(api_key: str | None, texts: dict[str, str]) -> ChatHistory | None:
    """Return the visitor's conversation, once the access key has been typed if there is one.

    The conversation's id is in the address, so that a reload finds it. It is no key: after a reload the key is not
    asked for only if the browser is the one in which it was typed, which its cookie tells.
    """
    browser = browser_token(st.context.cookies.get(COOKIE))
    visit = _conversations().find(st.query_params.get(ID))
    is_known = visit is not None and visit.browser is not None and visit.browser == browser
    if api_key is not None and not is_known and not _may_enter(api_key, texts):
        return None
    key, visit = _conversations().open(st.query_params.get(ID))
    if st.query_params.get(ID) != key:
        st.query_params[ID] = key
    if api_key is not None and visit.browser is None:
        visit.browser = browser
    history: ChatHistory = visit.history
    return history


def _may_enter(key: str, texts: dict[str, str]) -> bool:
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


if __name__ == "__main__":
    page(tuple(sys.argv[1:]))
