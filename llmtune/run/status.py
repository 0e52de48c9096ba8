"""status.json: the state of a run, and how to read it. No torch.

Written by `llmtune.run.record`; read by `llmtune runs`, the board, scripts.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from llmtune.utils.files import read_json

STATUS_FILE = "status.json"
LOG_FILE = "run.log"
TYPED_FILE = "run.yaml"
SAMPLES_FILE = "samples.jsonl"

State = Literal[
    "queued", "preparing", "encoding", "loading", "training", "evaluating", "saving", "stopping",
    "finished", "stopped", "failed",
]  # fmt: skip
ENDED = ("finished", "stopped", "failed")
LOST = "Its process is gone without a message: it was killed, perhaps by lack of memory, or the machine was restarted."
QUIET_SECONDS = 120
"""Age of a heartbeat from another machine after which its run counts as lost."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a run.

    Attributes:
        step: Optimizer steps done, of `max_steps`; 0 of 0 before training.
        eta_seconds: Time left, evaluation and saving included; None where unknown.
        metrics: The last value of each logged number: `loss`, `eval_loss`, `reward` ...
        tokens_per_second: Useful tokens over all processes, since the last log line.
        memory_gib: Peak memory of the GPU if there is one, else of the process.
        pid: The process to signal: the run's own, or its launcher. pid_started: Its start, in seconds since the epoch,
            which tells it from a later process of the same number.
        started, updated, ended: Local time with its offset, ISO 8601; `updated` is the heartbeat.
        best_checkpoint, last_checkpoint: Names within the run folder.
        resumable: Whether its last checkpoint can be resumed from.
        error: One line with the next step, of a failed run.
    """

    state: State = "preparing"
    stage: str = "sft"
    name: str = ""
    model: str = ""
    model_type: str = ""
    dataset: list[str] = field(default_factory=list)
    step: int = 0
    max_steps: int = 0
    eta_seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    memory_gib: float | None = None
    pid: int = 0
    pid_started: float = 0.0
    host: str = ""
    processes: int = 1
    gpus: list[str] = field(default_factory=list)
    cwd: str = ""
    argv: list[str] = field(default_factory=list)
    started: str = ""
    updated: str = ""
    ended: str = ""
    best_checkpoint: str = ""
    last_checkpoint: str = ""
    resumable: bool = False
    error: str = ""
    version: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether the run has not ended."""
        return self.state not in ENDED

    def seconds_since(self, moment: Literal["started", "updated", "ended"]) -> float:
        """Seconds from a moment until now; 0 where it is not known."""
        try:
            return max(time.time() - datetime.fromisoformat(getattr(self, moment)).timestamp(), 0.0)
        except ValueError:
            return 0.0


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


_FIELDS = {item.name: item for item in dataclasses.fields(RunStatus)}
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "State": (str,),
    "float | None": (int, float, type(None)), "list[str]": (list,), "dict[str, float]": (dict,),
}  # fmt: skip


def read_status(run: Path) -> RunStatus | None:
    """Return the status of a run folder; None where there is none, or it cannot be read.

    A run whose process is gone counts as failed, whatever its file says.
    """
    found = {name: value for name, value in read_json(run / STATUS_FILE).items() if _fits(name, value)}
    if found.get("state") not in get_args(State):
        return None
    status = RunStatus(**found)
    if status.is_alive and status.state != "queued" and not has_process(status):
        return dataclasses.replace(status, state="failed", error=LOST, eta_seconds=None)
    return status


def _fits(name: str, value: Any) -> bool:
    item = _FIELDS.get(name)
    if item is None or not isinstance(value, _TYPES[str(item.type)]):
        return False
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    if isinstance(value, dict):
        return all(isinstance(one, (int, float)) for one in value.values())
    return isinstance(value, bool) == (item.type == "bool")


def has_process(status: RunStatus) -> bool:
    """Whether the process of a run is alive; of another machine, whether it was heard of lately."""
    if status.host != socket.gethostname():
        return status.seconds_since("updated") < QUIET_SECONDS
    import psutil

    try:
        process = psutil.Process(status.pid)
        if abs(process.create_time() - status.pid_started) > 1:
            return False
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True
