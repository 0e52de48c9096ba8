"""The block that a run logs before step 1: what is trained on what, and the settings chosen automatically."""

from __future__ import annotations

from llmtune.utils.logging import get_logger

__all__ = ["Decisions"]

ORDER = (
    *("Model", "Device", "Distributed", "Data", "Packs", "Validation", "Training", "Trainable parameters"),
    *("Batch", "Steps", "Optimizer", "Checkpoints", "Memory"),
)
"""Facts in the order of the block; others follow as they come."""


class Decisions(list[str]):
    """Settings that were chosen automatically, as lines `Name: value; why`, beside the facts of the run.

    `facts`: name -> text, those that flags asked for included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, str] = {}

    def fact(self, name: str, text: str) -> None:
        self.facts[name] = text

    def choose(self, name: str, value: str, why: str = "") -> None:
        """Note a setting and why it was chosen; without a reason, a flag asked for it, and it is a fact."""
        if why:
            self.append(f"{name}: {value}; {why}")
        else:
            self.fact(name, value)

    def fact_lines(self) -> list[str]:
        """`Name: text` of each fact."""
        names = [*(name for name in ORDER if name in self.facts), *(name for name in self.facts if name not in ORDER)]
        return [f"{name}: {self.facts[name]}" for name in names]

    def show(self) -> None:
        """Log the block."""
        lines = self.fact_lines()
        if self:
            lines += ["Chosen automatically:", *(f"  {line}" for line in self)]
        get_logger().info("%s", "\n".join(lines))
