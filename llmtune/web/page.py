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
from llmtune.inference.load import load_engine, load_scorer
from llmtune.inference.sampling import Sampling
from llmtune.inference.score import Scorer
from llmtune.utils.logging import quiet_libraries
from llmtune.web.chat_tab import chat_tab, settings
from llmtune.web.score_tab import score_tab
from llmtune.web.training_tab import training_tab

TEXTS = {
    "chat": ("Chat", "对话"),
    "training": ("Training", "训练"),
    "scores": ("Scores", "打分"),
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
    "run": ("Run", "训练目录"),
    "no_runs": (
        "No run with a logging.jsonl below {folder}. Start one with llmtune sft, or set its folder: --run_dir.",
        "{folder} 下没有带 logging.jsonl 的训练。用 llmtune sft 开始一次训练,或用 --run_dir 指定目录。",
    ),
    "no_log": ("Nothing has been logged yet.", "还没有日志。"),
    "step": ("Step", "步数"),
    "of_steps": ("{step} of {total}", "{step} / {total}"),
    "last": ("Last line of the log", "日志的最后一行"),
    "report": ("Report", "报告"),
    "answers": ("Responses with their rewards", "回答与奖励"),
    "live": ("The curves are refreshed every few seconds.", "曲线每隔几秒重新读取。"),
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
    if args.api_key is not None and not _may_enter(args.api_key, texts):
        return
    draw = _score_page if args.scores else _chat_page
    try:
        draw(argv, args, texts)
    except LlmtuneError as err:
        st.error(str(err))


def _score_page(argv: tuple[str, ...], args: WebArguments, texts: dict[str, str]) -> None:
    scorer = _scorer(argv)
    st.title(args.main_name)
    scores, training = st.tabs([texts["scores"], texts["training"]])
    with scores:
        score_tab(scorer, texts)
    with training:
        training_tab(_runs_folder(args), texts)


def _chat_page(argv: tuple[str, ...], args: WebArguments, texts: dict[str, str]) -> None:
    engine = _engine(argv)
    st.title(args.main_name)
    names: dict[str, str | None] = {args.main_name: None, **{name: name for name in engine.adapters}}
    choices = settings(engine, names, Sampling.of(args), texts)
    chat, training = st.tabs([texts["chat"], texts["training"]])
    with chat:
        chat_tab(engine, names, choices, texts)
    with training:
        training_tab(_runs_folder(args), texts)


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


def _runs_folder(args: WebArguments) -> Path:
    if args.run_dir is not None:
        return Path(args.run_dir)
    if args.ckpt_dir is not None and (Path(args.ckpt_dir).parent / "logging.jsonl").is_file():
        return Path(args.ckpt_dir).parent
    return Path("output")


if __name__ == "__main__":
    page(tuple(sys.argv[1:]))
