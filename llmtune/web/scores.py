"""The page of a reward model, in the place of the chat: a prompt and a response, and the scores so far."""

from __future__ import annotations

import threading

import streamlit as st

from llmtune.data.comparisons import last_response
from llmtune.errors import LlmtuneError
from llmtune.inference.score import Scorer
from llmtune.types import Conversation, Message

_BUSY = threading.Lock()
"""Visitors share the scorer's tokenizer, which threads cannot use at once."""


def score_form(scorer: Scorer, texts: dict[str, str]) -> None:
    """Take a prompt and a response, and show the score above those of earlier ones."""
    st.info(texts["scores_only"])
    with st.form("score_form"):
        prompt = st.text_area(texts["prompt"], key="prompt")
        response = st.text_area(texts["response"], key="response")
        is_asked = st.form_submit_button(texts["score"])
    shown: list[dict[str, str]] = st.session_state.setdefault("scores", [])
    if is_asked:
        try:
            score = score_of(scorer, prompt, response)
        except LlmtuneError as err:
            st.error(str(err))
        else:
            shown.insert(0, {texts["score"]: f"{score:.4f}", texts["prompt"]: prompt, texts["response"]: response})
    if shown:
        st.table(shown)


def score_of(scorer: Scorer, prompt: str, response: str) -> float:
    """Return the score of a response.

    Raises:
        LlmtuneError: A text is empty, or the template cannot express them.
    """
    whole = Conversation((Message("user", prompt), Message("assistant", response, loss=True)))
    with _BUSY:
        (encoded,) = scorer.encode([last_response(whole)])
    if encoded.problem is not None:
        raise LlmtuneError(encoded.problem)
    return scorer.scores_of([encoded])[0][0]
