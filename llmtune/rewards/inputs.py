"""Inputs of reward functions, and the shapes in which trl, ms-swift and verl expect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmtune.rewards.info import Form


@dataclass(frozen=True, kw_only=True)
class RewardInput:
    """A batch of completions and the rows that they belong to, one value per completion throughout.

    Attributes:
        prompts: As in the row: a text, or a list of message dicts.
        completions: Texts.
        completion_ids: Token ids.
        columns: Every other column of the rows.
        rows: Names of the rows in messages, such as "row 17".
        trainer_state: State of the trainer, for functions that ask for it.
        messages: The turns of each completion after its prompt (`role`, `content`, `tool_calls`), of several turns or
            with tools; None: each is one assistant message.
    """

    prompts: Sequence[Any]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    rows: Sequence[str] = ()
    trainer_state: Any = None
    messages: Sequence[list[dict[str, Any]]] | None = None

    def __post_init__(self) -> None:
        parts = [self.prompts, self.completion_ids, *self.columns.values(), *filter(None, (self.rows, self.messages))]
        assert all(len(part) == len(self.completions) for part in parts), "one value per completion"

    def name(self, row: int) -> str:
        return self.rows[row] if self.rows else f"completion {row}"

    def only(self, row: int) -> RewardInput:
        """Return a batch of one of the completions."""
        here = slice(row, row + 1)
        return replace(
            self,
            prompts=self.prompts[here],
            completions=self.completions[here],
            completion_ids=self.completion_ids[here],
            columns={name: values[here] for name, values in self.columns.items()},
            rows=self.rows[here],
            messages=None if self.messages is None else self.messages[here],
        )

    def turns(self, row: int) -> list[dict[str, Any]]:
        """Return the messages of a completion."""
        if self.messages is not None:
            return self.messages[row]
        return [{"role": "assistant", "content": self.completions[row]}]

    def shown_completions(self, form: Form) -> list[Any]:
        """Return the completions as texts or lists of messages; for `auto`, in the form of their prompts."""
        return [
            self.turns(row)
            if form == "messages" or (form == "auto" and not isinstance(self.prompts[row], str))
            else text
            for row, text in enumerate(self.completions)
        ]

    def arguments(self) -> dict[str, Any]:
        """Return what functions of trl and ms-swift may ask for by name, but the completions."""
        conversations = [
            [*([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt), *self.turns(row)]
            for row, prompt in enumerate(self.prompts)
        ]
        return {
            "messages": conversations,
            **self.columns,
            "prompts": list(self.prompts),
            "completion_ids": self.completion_ids,
            "response_token_ids": self.completion_ids,
            "trainer_state": self.trainer_state,
        }

    def verl_row(self, row: int) -> dict[str, Any]:
        """Return the arguments of verl's `compute_score` for one completion."""
        values = {name: column[row] for name, column in self.columns.items()}
        reward_model = values.get("reward_model")
        truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
        return {
            **values,
            "data_source": values.get("data_source") or "",
            "solution_str": self.completions[row],
            "ground_truth": values.get("ground_truth", truth),
            "extra_info": values.get("extra_info") or {},
        }
