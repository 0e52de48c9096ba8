"""The training tab: a run's curves, refreshed during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from llmtune.run.curves import read_scalars
from llmtune.utils.files import read_records

EVERY_SECONDS = 3
NUM_COLUMNS = 2
FIRST = ("reward", "eval_reward", "loss", "eval_loss", "learning_rate", "grad_norm")
ANSWERS_FILE = "answers.jsonl"
ANSWER_COLUMNS = ("round", "prompt", "response", "reward", "tokens")
SHOWN_ANSWERS = 40


def training_tab(folder: Path, texts: dict[str, str]) -> None:
    """Show one of the runs at or below a folder."""
    runs = find_runs(folder)
    if not runs:
        st.info(texts["no_runs"].format(folder=folder))
        return
    run = st.selectbox(
        texts["run"], runs, format_func=lambda one: one.name if one == folder else str(one.relative_to(folder))
    )
    _curves(run, texts)
    _answers(run / ANSWERS_FILE, texts)
    report = run / "report.md"
    if report.is_file():
        with st.expander(texts["report"]):
            st.markdown(report.read_text(encoding="utf-8"))


@st.fragment(run_every=EVERY_SECONDS)  # type: ignore[untyped-decorator]
def _curves(run: Path, texts: dict[str, str]) -> None:
    log_file = run / LOG
    curves = read_scalars(log_file)
    if not curves:
        st.info(texts["no_log"])
        return
    step = max(max(curve) for curve in curves.values())
    record = last_record(log_file)
    total = record.get("max_steps") or record.get("num_steps")
    st.metric(texts["step"], texts["of_steps"].format(step=step, total=total) if total else step)
    st.caption(texts["live"])
    columns = st.columns(NUM_COLUMNS)
    names = [name for name in FIRST if name in curves] + [name for name in curves if name not in FIRST]
    for number, name in enumerate(names):
        with columns[number % NUM_COLUMNS]:
            st.markdown(f"**{name}**")
            st.line_chart({"step": list(curves[name]), name: list(curves[name].values())}, x="step", y=name, height=220)
    with st.expander(texts["last"]):
        st.json(record)


def _answers(file: Path, texts: dict[str, str]) -> None:
    """Show the responses of an online stage, the newest first."""
    if not file.is_file():
        return
    records = read_records(file)[-SHOWN_ANSWERS:][::-1]
    with st.expander(texts["answers"]):
        st.dataframe([{name: record.get(name) for name in ANSWER_COLUMNS} for record in records], hide_index=True)


# The runs that the training tab shows


LOG = "logging.jsonl"
DEPTH = 3
"""Folders below the given one: output/<model>/v<N>-<time>/logging.jsonl."""


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders at or below a folder, the most recently written first."""
    found = [
        file for depth in range(DEPTH + 1) for file in folder.glob("/".join(["*"] * depth + [LOG])) if file.is_file()
    ]
    return [file.parent for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


def last_record(log_file: Path) -> dict[str, Any]:
    """Return the last complete record of a log that may be growing; empty where there is none."""
    return (read_records(log_file) or [{}])[-1]
