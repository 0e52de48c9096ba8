"""Commands of LLaMA-Factory, ms-swift, Axolotl, trl and torchtune: which of ours each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.utils.logging import log_once


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One command. `command`: ours. `words`: flags that it implies. `remark`: What ours does."""

    command: str
    words: tuple[str, ...] = ()
    remark: str = ""


CHAT = ("--eval_human", "true")
NEIGHBOURS = {
    "chat": Neighbour("infer", CHAT, "a conversation in the terminal"),
    "inference": Neighbour("infer", CHAT, "a conversation in the terminal"),
    "generate": Neighbour("infer"),
    "api": Neighbour("serve"),
    "deploy": Neighbour("serve"),
    "vllm-serve": Neighbour("serve", ("--backend", "vllm")),
    "webui": Neighbour("board"),
    "web-ui": Neighbour("board"),
    "webchat": Neighbour("web"),
    "app": Neighbour("web"),
    "preprocess": Neighbour(
        "check", (), "rows are encoded into the cache that the run then reads, and the first shown"
    ),
    "evaluate": Neighbour("eval"),
    "reward": Neighbour("rm"),
    "merge-lora": Neighbour("merge"),
    "quantize": Neighbour("export"),
    "validate": Neighbour("train", ("--dry_run", "true")),
    "config-schema": Neighbour("schema"),
    "ls": Neighbour("list"),
}
"""By the name there, with hyphens. `train` and `rlhf` name their stage: see arguments.stages.BY_FLAG."""


def ours(words: Sequence[str]) -> list[str]:
    """Return the words with our command for another tool's, said in a line; the words themselves for ours."""
    name = words[0].replace("_", "-")
    found = NEIGHBOURS.get(name)
    if found is None:
        return list(words)
    remark = f": {found.remark}" if found.remark else ""
    log_once(f"llmtune {name} is llmtune {' '.join((found.command, *found.words))}{remark}.", level=20)
    return [found.command, *words[1:], *found.words]
