"""From prompts to responses, by an engine; where the model may call tools, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.distributed.ranks import is_first
from llmtune.rollouts.engine import RolloutEngine
from llmtune.rollouts.experience import Group, Response
from llmtune.rollouts.turns import ToolTurns, Turns
from llmtune.samples.prompts import PromptSamples
from llmtune.templates.chat import ChatTemplate


@dataclass
class Writer:
    """Samples responses to prompts.

    Attributes:
        engine: Samples at the settings of training.
        greedy: Takes the most likely tokens, for evaluation.
        max_tokens: Most tokens of a response.
        tools: Makes the turns of responses to rows with tools; None: each response is one turn.
        is_remote: A server samples, asked by one process alone.
    """

    engine: RolloutEngine
    greedy: RolloutEngine
    template: ChatTemplate
    max_tokens: int
    tools: ToolTurns | None = None
    is_remote: bool = False

    @property
    def is_exact(self) -> bool:
        return self.engine.is_exact

    def write(
        self,
        groups: Sequence[Group],
        keys: Sequence[tuple[int, ...]],
        prompts: PromptSamples | None = None,
        *,
        greedy: bool = False,
    ) -> list[Response]:
        """Return a response for each of the given groups.

        Args:
            keys: What the random draws of each response depend on.
            prompts: What the groups are of: their rows offer the tools.
        """
        engine = self.greedy if greedy else self.engine
        rows = [self._begin(group, key, prompts) for group, key in zip(groups, keys, strict=True)]
        live = rows
        while live:
            made = engine.sample([row.request(self.max_tokens) for row in live])
            for row, one in zip(live, made, strict=True):
                row.add(one, self.template)
                if row.tools is not None:
                    row.tools.take(row, one)
            live = [row for row in live if not row.is_done]
        return [row.response(is_exact=self.is_exact) for row in rows]

    def _begin(self, group: Group, key: tuple[int, ...], prompts: PromptSamples | None) -> Turns:
        row = Turns(tuple(group.prompt_ids.tolist()), key)
        if self.tools is not None and prompts is not None:
            conversation = prompts.prompt(group.prompt).conversation
            if conversation.tools:
                row.conversation, row.tools = conversation, self.tools
        return row

    def update(self, step: int) -> None:
        """Hand the weights over, as they are after `step` steps."""
        if not self.is_remote or is_first():
            self.engine.update(step)
