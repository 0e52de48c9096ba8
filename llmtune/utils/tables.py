"""Tables of scores, readable as Markdown and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["markdown_table"]


def markdown_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with one row per checkpoint and one column per score; missing scores are empty."""
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = [["checkpoint", *names], ["---", *["---:"] * len(names)]]
    rows += [[key, *(_number(found.get(name)) for name in names)] for key, found in scores.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = [
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join([first, *rest]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 1e5 else f"{value:.4f}"
