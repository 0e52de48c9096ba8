"""The stages of training by name: their arguments and their functions. Data only: nothing here imports torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llmtune.errors import UnknownKeyError
from llmtune.registry import resolve_reference

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


@dataclass(frozen=True, slots=True)
class StageInfo:
    """A stage.

    Attributes:
        arguments: Its class, as `module:class`.
        function: What runs it, as `module:function`.
        description: One line for `llmtune --help`.
    """

    arguments: str
    function: str
    description: str


STAGES = {
    "sft": StageInfo("llmtune.arguments.stage:SftArguments", "llmtune.stages.sft:sft", "Fine-tune a model."),
    "pt": StageInfo(
        "llmtune.arguments.pretraining:PtArguments",
        "llmtune.stages.pt:pt",
        "Continue pre-training a model on text.",
    ),
    "dpo": StageInfo(
        "llmtune.arguments.preference:DpoArguments",
        "llmtune.stages.dpo:dpo",
        "Learn from pairs of responses: DPO and its relatives, by --loss.",
    ),
    "rm": StageInfo(
        "llmtune.arguments.preference:RmArguments",
        "llmtune.stages.rm:rm",
        "Train a reward model, which scores responses, from pairs.",
    ),
    "kto": StageInfo(
        "llmtune.arguments.preference:KtoArguments",
        "llmtune.stages.kto:kto",
        "Learn from single responses that are labelled good or bad.",
    ),
    "grpo": StageInfo(
        "llmtune.arguments.online:GrpoArguments",
        "llmtune.stages.grpo:grpo",
        "Learn from rewards of the model's own responses: GRPO and its relatives, by --loss.",
    ),
    "ppo": StageInfo(
        "llmtune.arguments.online:PpoArguments",
        "llmtune.stages.ppo:ppo",
        "Learn from rewards with a critic: PPO.",
    ),
}
"""By the name of the command."""

LOSSES = {**dict.fromkeys(("orpo", "simpo", "cpo", "ipo"), "dpo"), "rloo": "grpo"}
"""Names of losses that are commands, too, with their stage."""
BY_FLAG = {"rlhf": "rlhf_type", "train": "stage"}
"""Commands of other tools, and the flag that names their stage."""


def stage_arguments(name: str) -> type[StageArguments]:
    """Return the class of a stage's arguments.

    Raises:
        UnknownKeyError: No such stage.
    """
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownKeyError(f"There is no stage {name!r}.{hint} Stages: {', '.join(STAGES)}.")
    found: Any = resolve_reference(STAGES[name].arguments, what=f"The stage {name!r}")
    return cast("type[StageArguments]", found)
