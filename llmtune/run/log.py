"""What was decided for the user, and why: said when it is decided, and kept for the report."""

from __future__ import annotations

from llmtune.utils.logging import get_logger

__all__ = ["Decisions"]


class Decisions(list[str]):
    """Lines of a run's decisions."""

    def note(self, line: str) -> None:
        get_logger().info(line)
        self.append(line)
