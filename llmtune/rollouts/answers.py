"""answers.jsonl: a few responses of each round with their scores, as people read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtune.rollouts.experience import Experience, Group
from llmtune.samples.prompts import PromptSamples
from llmtune.utils.files import read_records

ANSWERS_FILE = "answers.jsonl"
KEPT = 4
"""Responses of a round that are kept: of the group with the largest spread, its best, its worst, and those between."""


@dataclass
class AnswerLog:
    """Appends to the file of a run folder.

    Attributes:
        newest: Records of the last round.
        is_continued: Later rounds than the first one here are gone from the file.
    """

    folder: Path
    prompts: PromptSamples
    names: Sequence[str]
    newest: list[dict[str, Any]] = field(default_factory=list)
    is_continued: bool = False

    def add(self, experience: Experience) -> None:
        """Write a few responses of a round; those of a round that is done again, as after resuming, are replaced."""
        file = self.folder / ANSWERS_FILE
        if not self.is_continued:
            self._forget_from(file, experience.number)
            self.is_continued = True
        with file.open("a", encoding="utf-8") as out:
            self.newest = list(self._records(experience))
            for record in self.newest:
                out.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _forget_from(self, file: Path, number: int) -> None:
        if not file.is_file():
            return
        records = read_records(file)
        kept = [one for one in records if one.get("round", 0) < number]
        if len(kept) < len(records):
            text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept)
            file.write_text(text, encoding="utf-8")

    def _records(self, experience: Experience) -> Iterator[dict[str, Any]]:
        if not experience.groups:
            return
        group = max(experience.groups, key=_spread)
        question = self.prompts.prompt(group.prompt).conversation.turns[-1].content
        ranked = sorted(group.responses, key=lambda one: -one.reward)
        places = sorted({round(at * (len(ranked) - 1) / max(KEPT - 1, 1)) for at in range(KEPT)})
        for one in (ranked[at] for at in places):
            yield {
                "round": experience.number,
                "row": self.prompts.name_of(group.prompt),
                "prompt": question,
                "response": one.text,
                **({"turns": one.messages} if one.messages else {}),
                "reward": one.reward,
                "scores": one.scores,
                "advantage": None if one.advantages is None else float(one.advantages.mean()),
                "tokens": one.num_sampled,
                "is_cut": one.is_cut,
            }


def _spread(group: Group) -> float:
    rewards = [one.reward for one in group.responses]
    return max(rewards) - min(rewards)
