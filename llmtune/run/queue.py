"""Runs that wait for a device: a file each, in order. Whoever starts one takes its file first: it is started once."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.stages import STAGES
from llmtune.errors import OutputError, UsageError
from llmtune.run.found import find_runs
from llmtune.utils.files import write_text

FOLDER = Path("output/.queue")
NAME = re.compile(r"(\d{4})\.yaml")


@dataclass(frozen=True)
class Waiting:
    """A queued run. `gpus`: for CUDA_VISIBLE_DEVICES; "" for any device."""

    file: Path
    stage: str
    gpus: str

    @property
    def words(self) -> list[str]:
        """Its command line, without `llmtune`."""
        return [self.stage, "--config", str(self.file)]

    @property
    def title(self) -> str:
        """Its model and data, for a list."""
        import yaml

        try:
            found = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return ""
        values = found if isinstance(found, dict) else {}
        parts = [
            values.get("run_name"),
            values.get("model_type") or values.get("model_id_or_path"),
            values.get("dataset"),
        ]
        return "  ".join(" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts if part)


class Queue:
    """The queue of a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / FOLDER

    def add(self, stage: str, text: str, gpus: str = "") -> Path:
        """Append a run.

        Args:
            text: Its YAML, for --config.

        Raises:
            UsageError: `gpus` are no numbers. OutputError: The folder cannot be written.
        """
        gpus = gpus.replace(" ", "")
        if not re.fullmatch(r"(\d+(,\d+)*)?", gpus):
            raise UsageError(f"GPUs are numbers such as 0,1, not {gpus!r}.")
        body = "\n".join(line for line in text.splitlines() if not line.startswith(("_stage:", "_gpus:")))
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(found[1]) for name in os.listdir(self.folder) if (found := re.match(r"(\d{4})\.", name))]
        for number in range(max(numbers, default=0) + 1, 10_000):
            file = self.folder / f"{number:04}.yaml"
            try:
                file.open("x").close()
            except FileExistsError:
                continue
            write_text(file, f"_stage: {stage}\n_gpus: '{gpus}'\n{body}\n")
            return file
        raise OutputError(f"The queue in {self.folder} is full.")

    def waiting(self) -> list[Waiting]:
        """Return the queued runs in order."""
        if not self.folder.is_dir():
            return []
        return [_read(file) for file in sorted(self.folder.iterdir()) if NAME.fullmatch(file.name)]

    def remove(self, name: str) -> None:
        """Remove a queued run by the name of its file."""
        if NAME.fullmatch(name):
            (self.folder / name).unlink(missing_ok=True)

    def take_next(self) -> Waiting | None:
        """Take the first run whose devices are free out of the queue; None if there is none."""
        busy, everything = self._busy()
        for one in self.waiting():
            wanted = set(filter(None, one.gpus.split(",")))
            if everything or (busy and not wanted) or wanted & busy:
                continue
            taken = one.file.with_name(f"{one.file.stem}.started-{os.getpid()}.yaml")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                one.file.rename(taken)
                return Waiting(taken, one.stage, one.gpus)
        return None

    def _busy(self) -> tuple[set[str], bool]:
        """The GPUs in use by runs of the root, and whether one of them may use any device."""
        alive = [run.status for run in find_runs(self.root) if run.status.is_alive]
        named: list[Sequence[str]] = [status.gpus for status in alive]
        return {gpu for gpus in named for gpu in gpus}, any(
            not all(map(str.isdigit, gpus)) or not gpus for gpus in named
        )


def _read(file: Path) -> Waiting:
    head = {"_stage": "sft", "_gpus": ""}
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in head:
                head[name] = value.strip().strip("'\"")
    return Waiting(file, head["_stage"] if head["_stage"] in STAGES else "sft", head["_gpus"])
