"""The folder of one run: output/<model_type>/v<N>-<time>, and the files written there besides checkpoints."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune import __version__
from llmtune.arguments.secrets import SECRETS
from llmtune.checkpoint import has_settings, set_aside_later
from llmtune.errors import OutputError
from llmtune.utils.files import ensure_writable_folder, write_json
from llmtune.utils.seal import sealed

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.run.lock import RunLock

__all__ = ["args_record", "check_flat_folder", "new_run_folder", "open_run_folder", "remove_leftovers", "write_metrics"]

PATHS = ("model_id_or_path", "tokenizer_id_or_path", "custom_register_path", "peft_path")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def new_run_folder(output_dir: str, model_type: str, *, flat: bool = False) -> Path:
    """Create the folder of a run: v<N>-<time> below its model, with the next free N.

    Args:
        flat: Use `output_dir` itself as the run folder, as other tools do.

    Raises:
        OutputError: The folder is not writable, or, with `flat`, already has a run.
    """
    if flat:
        folder = Path(output_dir).expanduser().resolve()
        check_flat_folder(folder)
        ensure_writable_folder(folder, flag="--output_dir")
        return folder
    parent = Path(output_dir).expanduser().resolve() / model_type
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            numbers = [int(found.group(1)) for name in os.listdir(parent) if (found := re.match(r"v(\d+)-", name))]
            folder = parent / f"v{max(numbers, default=-1) + 1}-{time.strftime('%Y%m%d-%H%M%S')}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as err:
        raise OutputError(
            f"Cannot write into {parent} ({err.strerror}). Give a writable folder with --output_dir."
        ) from err


def open_run_folder(args: StageArguments, resume: Path | None, lock: RunLock) -> Path:
    """Make the folder of a run, or take that of the checkpoint that it resumes from, and hold it."""
    if resume is None:
        run = new_run_folder(args.output_dir, args.display_name(), flat=args.output_dir_flat)
    else:
        run = resume.parent
    lock.take(run)
    remove_leftovers(run)
    if resume is not None:
        set_aside_later(resume)
    return run


def check_flat_folder(folder: Path) -> None:
    """Refuse a folder for `--output_dir_flat` that already has a run.

    Raises:
        OutputError: It already has a run.
    """
    if has_settings(folder):
        raise OutputError(
            f"{folder} already has a run, and --output_dir_flat true would write another into it. Resume it with "
            f"--resume_from_checkpoint {shlex.quote(str(folder))}, or choose another --output_dir."
        )


def args_record(args: StageArguments, **resolved: Any) -> dict[str, Any]:
    """Return the resolved arguments for sft_args.json, without secrets; keys with _ describe the run."""
    record = {name: value for name, value in dataclasses.asdict(args).items() if name not in SECRETS}
    for name in PATHS:  # a checkpoint is read from any folder
        if record[name] is not None and Path(record[name]).exists():
            record[name] = str(Path(record[name]).resolve())
    for name in ("dataset", "val_dataset"):
        record[name] = [str(Path(item).resolve()) if Path(item).exists() else item for item in record[name]]
    versions = {"llmtune": __version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return sealed(record | resolved | {"_versions": versions, "_started": time.strftime("%Y-%m-%dT%H:%M:%S")})


def write_metrics(folder: Path, split: str, metrics: dict[str, Any]) -> None:
    """Write <split>_results.txt (key = value lines) and <split>_results.json."""
    from llmtune.utils.files import write_text

    write_text(folder / f"{split}_results.txt", "".join(f"{key} = {metrics[key]}\n" for key in sorted(metrics)))
    write_json(folder / f"{split}_results.json", metrics)


def remove_leftovers(run: Path) -> None:
    """Delete temporary folders that a killed run left."""
    for pattern in (".saving-*", ".pushing-*"):
        for folder in run.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
