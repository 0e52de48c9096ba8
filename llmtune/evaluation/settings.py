"""Settings of a results folder: a resumed evaluation must use the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.checkpoint import ADAPTER_CONFIG
from llmtune.data.canonical import to_record
from llmtune.errors import OutputError
from llmtune.evaluation.choices import ChoiceQuestion
from llmtune.inference.engine import Sampling
from llmtune.types import Conversation
from llmtune.utils.files import ensure_writable_folder, read_json, write_json

__all__ = ["claim_folder", "digest"]

FILE = "eval_args.json"
WEIGHTS = ("*.safetensors", "*.bin", ADAPTER_CONFIG)


def digest(rows: Sequence[Conversation], questions: Sequence[ChoiceQuestion]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(to_record(row), sort_keys=True).encode("utf-8", "surrogatepass"))
    for question in questions:
        found.update(repr(question).encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


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
