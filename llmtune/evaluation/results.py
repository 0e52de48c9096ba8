"""Write scores of several checkpoints side by side: files, a table, curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.checkpoint import step_of
from llmtune.run.curves import draw_curves
from llmtune.utils.files import write_json, write_text
from llmtune.utils.logging import get_logger
from llmtune.utils.tables import markdown_table

if TYPE_CHECKING:
    from llmtune.arguments.evaluate import EvaluateArguments

__all__ = ["Scores", "write_results"]

Scores = dict[str, dict[str, float]]
"""Scores by checkpoint: percentages, except for `loss`, `perplexity` and `token_acc`, a fraction."""


def write_results(folder: Path, scores: Scores, args: EvaluateArguments) -> None:
    """Write summary.json, summary.md, and the curves of a run."""
    write_json(folder / "summary.json", scores)
    table = markdown_table(scores)
    write_text(folder / "summary.md", table)
    sys.stdout.write(table)
    if args.all_checkpoints:
        records = [
            {"global_step": step_of(checkpoint), **{f"eval_{key}": value for key, value in scores[name].items()}}
            for name, checkpoint in args.names().items()
            if checkpoint is not None
        ]
        write_text(folder / "curves.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        pictures = draw_curves(folder / "curves.jsonl", folder)
        get_logger().info("Curves: %s", ", ".join(str(picture) for picture in pictures))
    get_logger().info("Results: %s", folder)
