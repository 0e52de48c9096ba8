"""The visitor's own rows: tokens with those shaded that contribute to the loss, lengths, rows left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nicegui import ui

from llmtune.board.pages.frame import Page


def show_data(page: Page, facts: Mapping[str, Any]) -> None:
    """Show what `check` says."""
    statistics = facts["statistics"]
    shown = ("rows", "samples", "tokens", "trainable tokens", "prompts", "samples truncated", "samples skipped")
    ui.label(" · ".join(f"{name}: {statistics[name]}" for name in shown if name in statistics)).classes("text-body2")
    for note in facts["notes"]:
        ui.label(note).classes("text-warning")
    if facts["left_out"]:
        ui.label(page.text("left_out")).classes("text-bold text-negative left-out")
        for one in facts["left_out"]:
            ui.label(f"{one['source']}, {one['location']}: {one['reason']}  {one['excerpt']}").classes("text-caption")
    ui.label(page.text("your_rows")).classes("text-bold")
    for sample in facts["samples"]:
        with ui.card().classes("w-full q-pa-xs").props("flat bordered"):
            for part in sample["parts"]:
                if part["name"]:
                    ui.label(part["name"]).classes("text-caption text-grey")
                ui.html(tokens_html(part["tokens"]), sanitize=False).classes("tokens w-full")
    _histogram(page, facts["lengths"])


def tokens_html(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Tokens as spans, escaped; neighbouring trainable ones differ in shade."""
    parts = []
    for place, token in enumerate(tokens):
        shade = f"t{place % 2}" if token.get("trainable") else ""
        identity = token.get("token_id")
        title = f' title="{identity}"' if identity is not None else ""
        parts.append(f'<span class="{shade}"{title}>{escape(str(token["text"]))}</span>')
    return "".join(parts)


def _histogram(page: Page, lengths: Mapping[str, Any]) -> None:
    edges, counts, cut = lengths["edges"], lengths["counts"], lengths["cut"]
    data = [[(low + high) / 2, count] for low, high, count in zip(edges, edges[1:], counts, strict=False)]
    marks: dict[str, Any] = {}
    if cut is not None:
        line = {"xAxis": cut, "label": {"formatter": page.text("cut")}, "lineStyle": {"color": "#c53030"}}
        marks = {"markLine": {"symbol": "none", "data": [line]}}
    highest = max(edges[-1], cut if cut is not None and cut < 4 * edges[-1] else 0)
    ui.label(page.text("lengths")).classes("text-bold")
    ui.echart(
        {
            "animation": False,
            "grid": {"left": 8, "right": 16, "bottom": 8, "top": 16, "containLabel": True},
            "xAxis": {"type": "value", "min": 0, "max": highest * 1.02},
            "yAxis": {"type": "value"},
            "series": [{"type": "bar", "data": data, "barWidth": "90%", **marks}],
        }
    ).classes("w-full h-40")
