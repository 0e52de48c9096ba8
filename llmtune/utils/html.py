"""Pieces of HTML for notebooks: escaped, self-contained, without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, EDGE = 340, 160, 8
"""Pixels of a curve, and what is left free around it."""
COLOURS = ("#00897b", "#e65100")


def table(rows: Mapping[str, object]) -> str:
    """Return a table of names and values."""
    cells = (f"<tr><th style='text-align:left'>{_text(name)}</th><td style='text-align:left;white-space:pre-wrap'>"
             f"{_text(value)}</td></tr>" for name, value in rows.items())  # fmt: skip
    return f"<table>{''.join(cells)}</table>"


def grid(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with a head of names."""
    head = "".join(f"<th style='text-align:left'>{_text(name)}</th>" for name in names)
    style = "text-align:left;vertical-align:top;white-space:pre-wrap;max-width:30em"
    body = "".join(
        "<tr>" + "".join(f"<td style='{style}'>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def curves(title: str, lines: Mapping[str, Mapping[int, float]]) -> str:
    """Return curves over the steps as one SVG; the legend gives the last value of each."""
    points = [(step, value) for line in lines.values() for step, value in line.items()]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    parts, legend = [], []
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        if line:
            path = " ".join(
                f"{_place(step, min(steps), max(steps), WIDTH):.1f},"
                f"{HEIGHT - _place(value, min(values), max(values), HEIGHT):.1f}"
                for step, value in line.items()
            )
            parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
            legend.append(f"<span style='color:{colour}'>{_text(name)} {list(line.values())[-1]:.4g}</span>")
    frame = f"<rect width='{WIDTH}' height='{HEIGHT}' fill='none' stroke='#888' stroke-width='1'/>"
    box = f"viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img'"
    svg = f"<svg {box}>{frame}{''.join(parts)}</svg>"
    caption = f"{_text(title)}, steps {min(steps)} to {max(steps)}: {', '.join(legend)}"
    return f"<figure style='display:inline-block;margin:4px'>{svg}<figcaption>{caption}</figcaption></figure>"


def _place(value: float, low: float, high: float, size: int) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return EDGE + share * (size - 2 * EDGE)


def _text(value: object) -> str:
    return escape(str(value))
