"""Rewards of the data's own reference responses, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmtune.rewards.call import score_all
from llmtune.rewards.reference import zero_on_reference
from llmtune.rollouts.experience import Group, Response
from llmtune.rollouts.scoring import Judge, reward_input
from llmtune.samples.prompts import PromptSamples

MOST_ROWS = 200


def on_references(judge: Judge, prompts: PromptSamples, tokenizer: Any) -> tuple[dict[str, str], list[str]]:
    """Score reference responses with the functions of a run; reward models are not loaded.

    Returns:
        The mean of each function by name, as text, and a line for each one that gives most of them 0.

    Raises:
        RewardError: A function fails on them.
    """
    groups, rows = [], []
    for index in range(min(MOST_ROWS, len(prompts.store))):
        row = prompts.prompt(index)
        if row.reference:
            rows.append(row)
            groups.append(_group(index, row.reference[-1].content, tokenizer))
    if not rows or not judge.functions:
        return {}, []
    inputs = reward_input(groups, rows, [prompts.name_of(group.prompt) for group in groups])
    means = {
        function.name: _mean_text(one.values)
        for function, one in zip(judge.functions, score_all(judge.functions, inputs), strict=True)
    }
    return means, zero_on_reference(judge.functions, inputs)


def _group(index: int, text: str, tokenizer: Any) -> Group:
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    return Group(index, index, np.zeros(0, np.int32), [Response(ids, np.ones(len(ids), np.bool_), text)])


def _mean_text(values: Sequence[float | None]) -> str:
    given = [value for value in values if value is not None]
    return f"{np.mean(given):.3g} on average of {len(given):,} reference responses" if given else "none applies"
