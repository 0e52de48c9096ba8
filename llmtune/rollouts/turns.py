"""Responses of several turns: the model calls functions, reads their results, and goes on. Ids in, ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmtune.inference.texts import response_text, split_answer
from llmtune.rollouts.engine import Rollout, RolloutRequest
from llmtune.rollouts.experience import Response
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools import ToolFormat, tool_format_of
from llmtune.templates.tools.info import function_of
from llmtune.templates.turns import CALL, between_turns, calls_several
from llmtune.tool_functions.call import ToolBox, ToolResult
from llmtune.types import Conversation, Message, ToolCall


@dataclass
class Turns:
    """A response while it is sampled, turn by turn.

    Attributes:
        prompt_ids: The prompt.
        key: Seed of its random draws.
        conversation: What the template has written so far: the prompt, then each turn with its results.
        tools: Makes the turns; None: the first turn is the response.
        ids, sampled, logps: As in `Response`, so far.
        messages: The turns as rewards read them.
        text: Of the last turn.
        is_done, is_cut: It has ended; by a bound.
        opens_thought: The last ids open a thought that the next turn continues; None where nothing has asked yet.
    """

    prompt_ids: tuple[int, ...]
    key: tuple[int, ...]
    conversation: Conversation | None = None
    tools: ToolTurns | None = None
    ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    is_done: bool = False
    is_cut: bool = False
    opens_thought: bool | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def request(self, max_tokens: int) -> RolloutRequest:
        """Return what the engine is asked for next.

        Args:
            max_tokens: Most tokens of the whole response.
        """
        return RolloutRequest(
            (*self.prompt_ids, *self.ids),
            self.key,
            max_tokens - len(self.ids),
            num_drawn=sum(self.sampled),
            stop=() if self.tools is None else self.tools.format.stop_words,
        )

    def add(self, made: Rollout, template: ChatTemplate) -> None:
        """Append what the engine has sampled."""
        self.ids += made.ids
        self.sampled += [True] * len(made.ids)
        self.logps += made.logps
        self.is_cut = made.finish_reason == "length"
        self.is_done = self.tools is None or self.is_cut
        words = () if self.tools is None else self.tools.format.stop_words
        self.text = response_text(template, made.ids, words)

    def response(self, *, is_exact: bool) -> Response:
        return Response(
            np.array(self.ids, np.int32),
            np.array(self.sampled, np.bool_),
            text=self.text,
            is_cut=self.is_cut,
            engine=np.array(self.logps, np.float32) if self.logps and not is_exact else None,
            messages=self.messages,
            counts=self.counts,
        )


@dataclass(frozen=True)
class ToolTurns:
    """Reads turns, runs their calls and appends the results, by the tool format of a template.

    Attributes:
        max_turns: Most turns of a response.
        max_tokens: Most tokens of a response, results included.
    """

    template: ChatTemplate
    format: ToolFormat
    box: ToolBox
    max_turns: int
    max_tokens: int
    has_several: bool

    @classmethod
    def of(cls, template: ChatTemplate, box: ToolBox, *, max_turns: int, max_tokens: int) -> ToolTurns:
        """Return them for a template with a tool format."""
        found = tool_format_of(template)
        assert found is not None, "checked when the rows were prepared"
        return cls(template, found, box, max_turns, max_tokens, calls_several(found))

    def take(self, turns: Turns, made: Rollout) -> None:
        """Read the turn that was sampled last; run its calls and append their results, or end the response."""
        message, calls = self._read(turns)
        turns.messages.append(message)
        turns.counts["turns"] = turns.counts.get("turns", 0) + 1
        if turns.is_done or not calls:
            turns.is_done = True
            return
        if turns.counts["turns"] >= self.max_turns:
            turns.is_done = turns.is_cut = True
            return
        assert turns.conversation is not None
        results = self._run(turns, calls)
        told = [Message("tool", one.text, name=call.name) for call, one in zip(calls, results, strict=True)]
        between = between_turns(self.template, turns.conversation, told, made.ids)
        if len(turns.ids) + len(between.ids) >= self.max_tokens:  # no room for another turn
            turns.is_done = turns.is_cut = True
            return
        turns.ids += between.ids
        turns.sampled += [False] * len(between.ids)
        turns.opens_thought = between.opens_thought
        turns.messages += [{"role": "tool", "name": one.name, "content": one.content} for one in told]
        turn = Message("assistant", "", tool_calls=(CALL,))
        turns.conversation = replace(turns.conversation, messages=(*turns.conversation.messages, turn, *told))

    def _read(self, turns: Turns) -> tuple[dict[str, Any], tuple[ToolCall, ...]]:
        """Return a turn as APIs write it, and its calls. Calls within a thought are none, as in the server."""
        assert turns.conversation is not None
        if turns.opens_thought is None:
            turns.opens_thought = self.template.opens_thought(turns.conversation)
        thought, content = split_answer(turns.text, self.template.thought_marks, opened=turns.opens_thought)
        parsed = self.format.parse(content)
        calls = parsed.calls if self.has_several else parsed.calls[:1]
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if thought is not None:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in calls
            ]
        return message, calls

    def _run(self, turns: Turns, calls: Sequence[ToolCall]) -> list[ToolResult]:
        assert turns.conversation is not None
        offered = [str(function_of(tool).get("name", "")) for tool in turns.conversation.tools]
        results = [self.box.call(call, offered) for call in calls]
        counts = turns.counts
        counts["calls"] = counts.get("calls", 0) + len(results)
        counts["failures"] = counts.get("failures", 0) + sum(one.has_failed for one in results)
        counts["cut_results"] = counts.get("cut_results", 0) + sum(one.is_cut for one in results)
        return results
