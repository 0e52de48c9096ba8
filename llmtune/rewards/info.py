"""REWARD_MAPPING: functions that score completions, by the keys of `--rewards`. Data only: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

Form = Literal["auto", "text", "messages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardInfo(Entry):
    """A reward function.

    Attributes:
        function: A function or class, or `"module:attribute"`, imported on first use. A function is called as trl
            calls it, `f(completions, **columns) -> list of float or None`; a class, as in ms-swift, is instantiated
            once with its options and then called; `f(data_source, solution_str, ground_truth, extra_info) -> float` is
            called once per row, as verl does.
        columns: Columns of the data that it needs; `a|b` is either of them.
        completions: Form of the completions: texts, or lists of messages. `auto`: texts for a class; for a function
            that of the prompt in the row, as in trl.
        defaults: Options with their values; None: filled by the run, or computed. Empty: parameters with a default.
        penalty: Whether 0 is its best value.
        description: One line for `llmtune list rewards`.
        source: The paper, or where it comes from.
    """

    function: str | Callable[..., Any]
    columns: tuple[str, ...] = ()
    completions: Form = "auto"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    penalty: bool = False
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.completions not in ("auto", "text", "messages"):
            raise UsageError(f"completions of a reward entry is auto, text or messages, not {self.completions!r}.")
        if isinstance(self.columns, str):
            raise UsageError(f"columns of a reward entry is a tuple of names: ({self.columns!r},).")


REWARD_MAPPING: Registry[RewardInfo] = Registry(
    "reward",
    RewardInfo,
    builtin="llmtune.rewards.builtin",
    function_field="function",
    entry_points="llmtune.rewards",
    list_command="llmtune list rewards",
)
register_reward = REWARD_MAPPING.register
