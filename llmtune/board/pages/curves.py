"""Curves of one run or several, over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nicegui import ui

from llmtune.board.data import FIRST_CURVES, OTHER_CURVES, Point, read_curves, smoothed, thinned
from llmtune.board.pages.frame import Page

FEW = 40
"""Points up to which each is marked."""


class Curves:
    """A chart of losses, and one for each other number. The choices are the visitor's own.

    Args:
        runs: Name -> folder.
    """

    def __init__(self, page: Page, runs: Mapping[str, Path]) -> None:
        self.runs = runs
        self.charts: dict[str, Any] = {}
        self._former: object = None
        labels = {"step": page.text("by_step"), "tokens": page.text("by_tokens"), "seconds": page.text("by_time")}
        with ui.row().classes("items-center gap-3"):
            self.axis = ui.toggle(labels, value="step", on_change=self._changed).props("dense no-caps")
            self.log = ui.checkbox(page.text("log_axis"), on_change=self._changed)
            ui.label(page.text("smoothing"))
            self.smoothing = ui.slider(min=0, max=0.99, step=0.01, value=0, on_change=self._changed)
            self.smoothing.props(f'label aria-label="{page.text("smoothing")}"').classes("w-32")
        self.grid = ui.element("div").classes("w-full grid grid-cols-1 md:grid-cols-2 gap-2 curves")
        self.refresh()

    def _changed(self) -> None:
        self._former = None
        self.refresh()

    def refresh(self) -> None:
        """Read the logs again where they have grown."""
        sizes = {name: _size(folder) for name, folder in self.runs.items()}
        if sizes == self._former:
            return
        self._former = sizes
        found = {name: read_curves(folder) for name, folder in self.runs.items()}
        self._draw("loss", _together(found, FIRST_CURVES))
        for name in OTHER_CURVES:
            self._draw(name, _together(found, (name,)))

    def _draw(self, title: str, series: Mapping[str, Sequence[Point]]) -> None:
        if not series:
            return
        options = self._options(title, series)
        if title not in self.charts:
            with self.grid:
                self.charts[title] = ui.echart(options).classes(f"w-full h-64 chart chart-{title.replace('/', '-')}")
            return
        self.charts[title].options.clear()
        self.charts[title].options.update(options)
        self.charts[title].update()

    def _options(self, title: str, series: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
        return {
            "title": {"text": title, "left": 0, "textStyle": {"fontSize": 13}},
            "animation": False,
            "tooltip": {"trigger": "axis", "confine": True},
            "legend": {"type": "scroll", "top": 2, "right": 0, "left": 190, "textStyle": {"fontSize": 10}},
            "grid": {"left": 8, "right": 16, "bottom": 8, "top": 42, "containLabel": True},
            "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "axisLabel": {"hideOverlap": True}},
            "yAxis": {"type": "log" if self.log.value else "value", "scale": True},
            "dataZoom": [{"type": "inside"}],
            "series": [self._line(name, points) for name, points in series.items()],
        }

    def _line(self, name: str, points: Sequence[Point]) -> dict[str, Any]:
        shown = thinned([one for one in points if one.value > 0 or not self.log.value])
        values = smoothed([one.value for one in shown], float(self.smoothing.value or 0))
        data = [[getattr(one, str(self.axis.value)), value] for one, value in zip(shown, values, strict=True)]
        marks = {"showSymbol": len(data) < FEW, "symbolSize": 4}
        return {"name": name, "type": "line", "data": data, "lineStyle": {"width": 1.5}, **marks}


def _together(found: Mapping[str, Mapping[str, Sequence[Point]]], names: Sequence[str]) -> dict[str, Sequence[Point]]:
    """The curves of these names; with several runs, their names are before them."""
    alone = len(found) == 1
    return {
        (curve if alone else f"{run} {curve}"): curves[curve]
        for run, curves in found.items()
        for curve in names
        if curve in curves
    }


def _size(run: Path) -> int:
    try:
        return (run / "logging.jsonl").stat().st_size
    except OSError:
        return 0
