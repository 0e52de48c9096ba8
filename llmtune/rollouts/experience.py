"""Experience: sampled responses with their rewards and advantages, from which one or several steps learn.

Shapes: T tokens of a response, S of them sampled; the others are results of tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtune.errors import CheckpointError
from llmtune.utils.files import read_json, write_json

ARRAYS_FILE, FACTS_FILE = "experience.npz", "experience.json"
"""Files of a checkpoint between two steps on the same experience."""
FACTS = ("text", "is_cut", "reward", "scores", "messages", "counts")
"""Of a response, beside its arrays."""
PER_TOKEN = ("engine", "old", "reference", "values", "returns", "advantages")
"""Arrays of a response with one number for each sampled token."""


@dataclass(slots=True)
class Response:
    """A sampled response.

    Attributes:
        ids: Behind those of the prompt, int32 [T].
        sampled: Which of them the model has sampled, bool [T].
        text: As rewards read it.
        is_cut: It has no end: its limit was reached.
        reward: Weighted sum of `scores`.
        scores: By the name of each reward; None where it does not judge the row.
        engine: Log-probabilities of the engine that sampled, float32 [S]; None: the model's own.
        old: The model's when the experience began, float32 [S]; None: those of the first forward pass.
        reference: The reference model's, float32 [S].
        values, returns: Of a critic, float32 [S].
        advantages: float32 [S].
        messages: Turns that it consists of, where tools are offered.
        counts: Of its turns, calls, failed calls and cut results, where tools are offered.
    """

    ids: NDArray[np.int32]
    sampled: NDArray[np.bool_]
    text: str = ""
    is_cut: bool = False
    reward: float = 0.0
    scores: dict[str, float | None] = field(default_factory=dict)
    engine: NDArray[np.float32] | None = None
    old: NDArray[np.float32] | None = None
    reference: NDArray[np.float32] | None = None
    values: NDArray[np.float32] | None = None
    returns: NDArray[np.float32] | None = None
    advantages: NDArray[np.float32] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def num_sampled(self) -> int:
        return int(self.sampled.sum())


@dataclass(slots=True)
class Group:
    """The responses to one prompt.

    Attributes:
        prompt: Its index in the store of prompts.
        position: Its place in the run's pass over all prompts, see `PromptSamples.prompt_at`.
        prompt_ids: int32.
    """

    prompt: int
    position: int
    prompt_ids: NDArray[np.int32]
    responses: list[Response] = field(default_factory=list)


@dataclass(slots=True)
class Experience:
    """Responses of one round of sampling.

    Attributes:
        number: Of the round, from 0.
        groups: In the order of their positions.
        metrics: What is logged of it.
        num_ties: Groups whose responses all have the same reward, those that were replaced included.
    """

    number: int
    groups: list[Group]
    metrics: dict[str, float] = field(default_factory=dict)
    num_ties: int = 0

    def responses(self) -> Iterator[Response]:
        for group in self.groups:
            yield from group.responses

    def save(self, folder: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {"prompt_ids": _joined([group.prompt_ids for group in self.groups], np.int32)}
        arrays["ids"] = _joined([one.ids for one in self.responses()], np.int32)
        arrays["sampled"] = _joined([one.sampled for one in self.responses()], np.bool_)
        for name in PER_TOKEN:
            found = [getattr(one, name) for one in self.responses()]
            if any(one is not None for one in found):
                arrays[name] = _joined(found, np.float32)
        with (folder / ARRAYS_FILE).open("wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]
        write_json(folder / FACTS_FILE, self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "metrics": self.metrics,
            "num_ties": self.num_ties,
            "groups": [
                {
                    "prompt": group.prompt,
                    "position": group.position,
                    "size": len(group.prompt_ids),
                    "responses": [
                        {"size": len(one.ids), **{name: getattr(one, name) for name in FACTS}}
                        for one in group.responses
                    ],
                }
                for group in self.groups
            ],
        }

    @classmethod
    def load(cls, folder: Path) -> Experience:
        """Read the experience of a checkpoint.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        try:
            facts = read_json(folder / FACTS_FILE)
            with np.load(folder / ARRAYS_FILE, allow_pickle=False) as stored:
                arrays = dict(stored)
            groups = _groups(facts["groups"], arrays)
            return cls(int(facts["number"]), groups, facts["metrics"], int(facts["num_ties"]))
        except (OSError, ValueError, KeyError, EOFError, TypeError, json.JSONDecodeError) as err:
            raise CheckpointError(
                f"The experience in {folder} cannot be read ({type(err).__name__}: {err}). Resume from another "
                "checkpoint of the run."
            ) from err


def _groups(facts: Sequence[dict[str, Any]], arrays: dict[str, NDArray[Any]]) -> list[Group]:
    prompts, ids, sampled = (_Cursor(arrays[name]) for name in ("prompt_ids", "ids", "sampled"))
    per_token = {name: _Cursor(arrays[name]) for name in PER_TOKEN if name in arrays}
    groups = []
    for fact in facts:
        group = Group(fact["prompt"], fact["position"], prompts.take(fact["size"]))
        for one in fact["responses"]:
            mask = sampled.take(one["size"])
            more: dict[str, Any] = {name: cursor.take(int(mask.sum())) for name, cursor in per_token.items()}
            told: dict[str, Any] = {name: one[name] for name in FACTS}
            group.responses.append(Response(ids.take(one["size"]), mask, **told, **more))
        groups.append(group)
    return groups


@dataclass
class _Cursor:
    """Parts of an array, one after the other."""

    array: NDArray[Any]
    at: int = 0

    def take(self, size: int) -> NDArray[Any]:
        self.at += size
        if self.at > len(self.array):
            raise ValueError("an array is too short")
        return self.array[self.at - size : self.at]


def _joined(parts: Sequence[NDArray[Any] | None], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(part for part in parts if part is not None)]).astype(dtype)
