"""Write scores of several checkpoints side by side: files, a table, curves."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.checkpoint import ADAPTER_CONFIG, step_of
from llmtune.data.canonical import to_comparison_record, to_record
from llmtune.errors import OutputError
from llmtune.evaluation.choices import ChoiceQuestion
from llmtune.inference.sampling import Sampling
from llmtune.metrics import markdown_table
from llmtune.run.curves import draw_curves
from llmtune.types import Comparison, Conversation
from llmtune.utils.files import ensure_writable_folder, read_json, read_records, write_json, write_text
from llmtune.utils.logging import get_logger

Scores = dict[str, dict[str, float]]
"""Scores by checkpoint: percentages, except for `loss`, `perplexity`, `token_acc`, a fraction, and those of reward
models."""


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


# Journal of finished records, line by line, with which a killed evaluation resumes


class Journal:
    """One JSON record per line, each with its `index`. An incomplete last line is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.records: dict[int, dict[str, Any]] = {}
        if file.is_file():
            self.records = {one["index"]: one for one in read_records(file) if isinstance(one.get("index"), int)}
            self._write_all()

    def add(self, records: Iterable[dict[str, Any]]) -> None:
        lines = []
        for record in records:
            self.records[record["index"]] = record
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write("".join(lines))
        except OSError as err:
            raise OutputError(f"Cannot write {self.file}: {err.strerror}. Free some space and start again.") from err

    def finish(self) -> list[dict[str, Any]]:
        """Sort the records by index, in the file as well, and return them."""
        self.records = dict(sorted(self.records.items()))
        self._write_all()
        return list(self.records.values())

    def _write_all(self) -> None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in self.records.values()]
        write_text(self.file, "".join(lines))


# Settings of a results folder: a resumed evaluation must use the same


FILE = "eval_args.json"
WEIGHTS = ("*.safetensors", "*.bin", ADAPTER_CONFIG)


def digest(rows: Sequence[Conversation | Comparison], questions: Sequence[ChoiceQuestion]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(_record(row), sort_keys=True).encode("utf-8", "surrogatepass"))
    for question in questions:
        found.update(repr(question).encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


def _record(row: Conversation | Comparison) -> dict[str, Any]:
    return to_record(row) if isinstance(row, Conversation) else to_comparison_record(row)


def claim_folder(args: EvaluateArguments, metrics: Sequence[str], data: str) -> Path:
    """Return the results folder, new or of an earlier call with the same settings.

    Raises:
        OutputError: It holds results of other settings, or cannot be written.
    """
    folder = args.result_folder()
    first = args.first
    settings: dict[str, Any] = {
        "checkpoints": {name: _identity(place) for name, place in args.names().items()},
        "model_type": first.model_type,
        "model_id_or_path": first.model_id_or_path,
        "template_type": first.template_type,
        "system": first.system,
        "chat_template_kwargs": first.chat_template_kwargs,
        "max_length": first.max_length,
        "dtype": first.dtype,
        "quantization_bit": first.quantization_bit,
        "data": data,
        "metrics": list(metrics),
        "suite": [*args.suite, args.num_fewshot, args.num_samples, args.suite_chat, args.suite_path]
        if args.suite
        else [],
        "choice_style": args.choice_style,
        "eval_batch_size": args.eval_batch_size,
        "seed": args.seed,
        "sampling": repr(Sampling.of(args)),
    }
    settings = json.loads(json.dumps(settings))
    ensure_writable_folder(folder, flag="--output_dir")
    before = read_json(folder / FILE)
    if before and before != settings:
        names = [name for name in settings if before.get(name) != settings[name]]
        raise OutputError(
            f"{folder} holds an evaluation with other settings ({', '.join(names)}). Give another --output_dir, or "
            "remove it to start again."
        )
    write_json(folder / FILE, settings)
    return folder


def _identity(checkpoint: Path | None) -> Any:
    """Return the path of a checkpoint with sizes and times of its weights, which may have been replaced."""
    if checkpoint is None:
        return None
    files = sorted(file for pattern in WEIGHTS for file in checkpoint.glob(pattern))
    return [str(checkpoint.resolve()), *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
