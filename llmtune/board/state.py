"""The state that all pages share: the root, the settings of this start, the helper that answers check and plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llmtune.board.children import FOLDER, WarmHelper
from llmtune.board.form import Values, clean
from llmtune.board.security import inside
from llmtune.board.servers import Servers
from llmtune.errors import UsageError
from llmtune.run.found import FoundRun, read_run
from llmtune.run.queue import Queue
from llmtune.utils.files import read_json, write_json

DRAFT_FILE = "draft.json"
QUEUE_FILE = "queue.json"


@dataclass
class Board:
    """A board of one root folder. Its pages keep nothing else: what they show is on disk."""

    root: Path
    allow_code: bool = False
    read_only: bool = False
    helper: WarmHelper = field(init=False)
    servers: Servers = field(init=False)
    queue: Queue = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.helper = WarmHelper(self.root)
        self.servers = Servers(self.root)
        self.queue = Queue(self.root)

    def run_in(self, folder: str) -> FoundRun | None:
        """Return the run of a folder of the root; None if there is none.

        Raises:
            UsageError: It is outside of the root.
        """
        path = inside(self.root, folder)
        try:
            return read_run(path) if folder else None
        except OSError:  # a name that no file system takes
            return None

    @property
    def queue_on(self) -> bool:
        """Whether queued runs are started as devices become free."""
        return read_json(self.root / FOLDER / QUEUE_FILE).get("on") is True

    @queue_on.setter
    def queue_on(self, value: bool) -> None:
        write_json(self.root / FOLDER / QUEUE_FILE, {"on": value})

    def shown(self, path: Path) -> str:
        """A path as the pages name it: within the root."""
        try:
            return str(path.resolve().relative_to(self.root))
        except ValueError:
            return str(path)

    def check_may_change(self) -> None:
        """Refuse what is more than looking.

        Raises:
            UsageError: The board is read only.
        """
        if self.read_only:
            raise UsageError("This board was started with --read_only true: it shows, and starts nothing.")

    # The form that was last edited; it survives a reload and a restart

    def read_draft(self) -> tuple[str, Values]:
        found = read_json(self.root / FOLDER / DRAFT_FILE)
        stage = str(found.get("stage", "sft"))
        values = found.get("values", {})
        try:
            return stage, clean(stage, values if isinstance(values, dict) else {})
        except UsageError:
            return "sft", {}

    def write_draft(self, stage: str, values: Values) -> None:
        if not self.read_only:
            write_json(self.root / FOLDER / DRAFT_FILE, {"stage": stage, "values": values})
