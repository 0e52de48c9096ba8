"""Rewards of sampled responses: functions on one process, reward models on all of them in shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import checkpoint_of
from llmtune.data.shapes import LISTS
from llmtune.distributed.collectives import gather_from_ranks, once
from llmtune.distributed.ranks import rank, world_size
from llmtune.inference.load import load_scorer
from llmtune.inference.score import Scorer
from llmtune.rewards.call import score_all
from llmtune.rewards.functions import RewardFunction, load_rewards
from llmtune.rewards.inputs import RewardInput
from llmtune.rewards.results import combine
from llmtune.rewards.specs import RewardSpec
from llmtune.rollouts.experience import Group, Response
from llmtune.samples.prompts import PromptSamples
from llmtune.types import Answer, Comparison, Message, Prompt, ToolCall

SCORE_BATCH = 16
"""Responses per forward pass of a reward model."""


@dataclass
class Judge:
    """Scores responses by all rewards of a run.

    Attributes:
        specs: As in `--rewards`.
        functions: Those of them that are functions, in order.
        scorers: Reward models by name.
        seconds: By the name of each reward, since the last `take_metrics`.
        metrics: Values of `log_metric` of functions written for trl, likewise.
    """

    specs: Sequence[RewardSpec]
    functions: list[RewardFunction]
    scorers: dict[str, Scorer]
    trainer_state: Callable[[], Any] = lambda: None
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, specs: Sequence[RewardSpec], *, max_tokens: int) -> Judge:
        """Load the functions and reward models of a run."""
        return cls(specs, load_rewards(specs, {"max_length": max_tokens}), {})

    def load_models(self, share: Callable[[Path], Any] | None = None) -> dict[str, str]:
        """Load the reward models; return where each computes, by name.

        Args:
            share: Returns the scorer of a checkpoint on the base of the model in training; None where it has another.
        """
        found = {}
        for spec in self.specs:
            if spec.kind == "model":
                folder = checkpoint_of(Path(spec.target).expanduser())
                scorer = None if share is None else share(folder)
                found[spec.name] = "a model of its own" if scorer is None else "an adapter of the same base"
                self.scorers[spec.name] = scorer or load_scorer(InferArguments(ckpt_dir=str(folder)))
        return found

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def check(self, prompts: PromptSamples) -> None:
        """Refuse data without the columns that functions need.

        Raises:
            UsageError: Names them, and those of the data.
        """
        available = set(row_columns(prompts.prompt(0)))
        for function in self.functions:
            function.check_columns(available)

    def judge(self, groups: Sequence[Group], prompts: PromptSamples) -> None:
        """Set the scores and rewards of all responses. Collective.

        Raises:
            RewardError: A function fails, or returns something that is no reward.
        """
        rows = [prompts.prompt(group.prompt) for group in groups]
        names = [prompts.name_of(group.prompt) for group in groups]
        found = once(lambda: self._by_functions(groups, rows, names))
        found |= self._by_models(groups, rows)
        responses = [one for group in groups for one in group.responses]
        columns = [found[spec.name] for spec in self.specs]
        whose = [name for name, group in zip(names, groups, strict=True) for _ in group.responses]
        weights = [spec.weight for spec in self.specs]
        rewards = combine(columns, weights, rows=whose, completions=[one.text for one in responses])
        for number, (response, reward) in enumerate(zip(responses, rewards, strict=True)):
            response.scores = {spec.name: column[number] for spec, column in zip(self.specs, columns, strict=True)}
            response.reward = float(reward)

    def take_metrics(self) -> dict[str, float]:
        """Return what functions have logged, and the seconds of each, since the last call."""
        found = {name: float(np.mean(values)) for name, values in self.metrics.items() if values}
        found |= {f"rewards/{name}/seconds": seconds for name, seconds in self.seconds.items()}
        self.metrics.clear()
        self.seconds.clear()
        return found

    def _by_functions(
        self, groups: Sequence[Group], rows: Sequence[Prompt], names: Sequence[str]
    ) -> dict[str, list[float | None]]:
        if not self.functions:
            return {}
        made = score_all(self.functions, reward_input(groups, rows, names, self.trainer_state()))
        for function, one in zip(self.functions, made, strict=True):
            self.seconds[function.name] = self.seconds.get(function.name, 0.0) + one.seconds
            for name, values in one.metrics.items():
                self.metrics.setdefault(name, []).extend(values)
        return {function.name: one.values for function, one in zip(self.functions, made, strict=True)}

    def _by_models(self, groups: Sequence[Group], rows: Sequence[Prompt]) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {}
        for name, scorer in self.scorers.items():
            own = range(rank(), len(groups), world_size())
            given = [comparison_of(rows[at], groups[at].responses) for at in own]
            scores = scorer.scores_of(scorer.encode(given), SCORE_BATCH)
            parts = dict(pair for part in gather_from_ranks(list(zip(own, scores, strict=True))) for pair in part)
            found[name] = [score for at in range(len(groups)) for score in parts[at]]
        return found


def reward_input(
    groups: Sequence[Group], rows: Sequence[Prompt], names: Sequence[str], trainer_state: Any = None
) -> RewardInput:
    """Return the responses of all groups as reward functions get them."""
    pairs = [(place, one) for place, group in enumerate(groups) for one in group.responses]
    columns = list(dict.fromkeys(name for row in rows for name in row_columns(row)))
    cells = [row_columns(row) for row in rows]
    with_turns = any(one.messages for _, one in pairs)
    return RewardInput(
        prompts=[shown_prompt(rows[place]) for place, _ in pairs],
        completions=[one.text for _, one in pairs],
        completion_ids=[one.ids[one.sampled].tolist() for _, one in pairs],
        columns={name: [cells[place].get(name) for place, _ in pairs] for name in columns},
        rows=[names[place] for place, _ in pairs],
        trainer_state=trainer_state,
        messages=[one.messages or _one_turn(one) for _, one in pairs] if with_turns else None,
    )


def row_columns(row: Prompt) -> dict[str, Any]:
    """Return the cells of a row beside its prompt, and its reference response as `response`."""
    found = {name: cell for name, cell in row.columns.items() if name not in ("prompt", *LISTS)}
    if row.reference:
        found.setdefault("response", row.reference[-1].content)
    return found


def shown_prompt(row: Prompt) -> str | list[dict[str, Any]]:
    """Return the prompt in the form of its row: a text, or messages."""
    given = row.columns.get("prompt")
    if isinstance(given, list) or any(isinstance(row.columns.get(name), list) for name in LISTS):
        return [message_dict(one) for one in row.conversation.messages]
    return row.conversation.turns[-1].content


def message_dict(message: Message) -> dict[str, Any]:
    """Return a message as the APIs of OpenAI write it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return found


def comparison_of(row: Prompt, responses: Sequence[Response]) -> Comparison:
    """Return the responses to a prompt as a reward model reads them, by its own template."""
    return Comparison(row.conversation, tuple(Answer(_messages(one)) for one in responses))


def _messages(response: Response) -> tuple[Message, ...]:
    turns: Sequence[Mapping[str, Any]] = response.messages or _one_turn(response)
    return tuple(
        Message(
            turn["role"],
            str(turn.get("content") or ""),
            loss=turn["role"] == "assistant",
            tool_calls=tuple(ToolCall(**call["function"]) for call in turn.get("tool_calls", ())),
            reasoning=turn.get("reasoning_content"),
            name=turn.get("name"),
        )
        for turn in turns
    )


def _one_turn(response: Response) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": response.text}]
