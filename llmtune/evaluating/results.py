"""Scores of several checkpoints side by side: files, a table, curves."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.training.curves import draw_curves
from llmtune.utils.files import write_json, write_text
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.evaluate import EvaluateArguments

__all__ = ["Scores", "markdown_table", "write_results"]

Scores = dict[str, dict[str, float]]
"""What each checkpoint reaches: percents, but for `loss` and `perplexity`."""


def write_results(folder: Path, scores: Scores, args: EvaluateArguments) -> None:
    """summary.json, summary.md, and the curves of a run."""
    write_json(folder / "summary.json", scores)
    table = markdown_table(scores)
    write_text(folder / "summary.md", table)
    sys.stdout.write(table)
    if args.all_checkpoints:
        records = [
            {"global_step": int(checkpoint.name[11:]), **{f"eval_{key}": value for key, value in scores[name].items()}}
            for name, checkpoint in args.names().items()
            if checkpoint is not None
        ]
        write_text(folder / "curves.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        pictures = draw_curves(folder / "curves.jsonl", folder)
        get_logger().info("Curves: %s", ", ".join(str(picture) for picture in pictures))
    get_logger().info("Results: %s", folder)


def markdown_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """One row a checkpoint, one column a score; what one of them lacks is left empty."""
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
