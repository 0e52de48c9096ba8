"""The arguments of `sft()` and `llmtune sft`: one dataclass, three spellings (Python, flags, YAML)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmtune.arguments.stage import StageArguments


@dataclass(kw_only=True)
class SftArguments(StageArguments):
    """Arguments of `sft()`: those that every stage has.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
            Datasets are looked up when the run starts.
    """

    LEARNING_RATES: ClassVar[dict[str, float]] = {
        "lora": 1e-4, "full": 2e-5, "adalora": 1e-3, "ia3": 3e-3, "vera": 4e-3,
    }  # fmt: skip
