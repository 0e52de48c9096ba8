"""Rows between file and loss: Conversation and Comparison as read, Encoded as trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

IGNORE_INDEX = -100
"""Label of a token that does not contribute to the loss: the value that torch's cross entropy ignores by default."""

Json: TypeAlias = Any
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
LossOn: TypeAlias = Literal["auto", "last", "all", "everything"]
TruncationStrategy: TypeAlias = Literal["left", "right", "delete"]
RowKind: TypeAlias = Literal["conversations", "pairs", "labels", "responses", "prompts"]
"""Kinds of rows: conversations, comparisons of responses, single responses that are good or bad, or any of these, whose
responses are to be scored, or whose prompts are to be responded to."""
DocumentUnit: TypeAlias = Literal["line", "file"]
"""How much of a `.txt` file is one row."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call of the assistant.

    Attributes:
        arguments: A JSON object, or the text of the data.
        id: Its id in the data, if any, referred to by its result's `tool_call_id`.
    """

    name: str
    arguments: Json
    id: str | None = None


MediaKind: TypeAlias = Literal["image"]
"""Kinds of media. One more needs its column below, its mark (`data.image_marks`) and a reader (`templates.media`)."""
MEDIA_COLUMNS: dict[MediaKind, str] = {"image": "images"}
"""Column of the paths of each kind, in rows, encoded samples and caches."""


@dataclass(frozen=True, slots=True)
class Media:
    """A file that a row shows to the model; `path` may be a URL."""

    path: str
    kind: MediaKind = "image"


def media_columns(media: Sequence[Media]) -> dict[str, list[str]]:
    """Return the paths of an encoded sample, by column; no column where there are none."""
    columns = {column: [one.path for one in media if one.kind == kind] for kind, column in MEDIA_COLUMNS.items()}
    return {column: paths for column, paths in columns.items() if paths}


def media_of(sample: Mapping[str, Any]) -> list[Media]:
    """Return the media of an encoded sample: the inverse of `media_columns`."""
    return [Media(path, kind) for kind, column in MEDIA_COLUMNS.items() for path in sample.get(column) or ()]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        loss: Whether an assistant turn is trainable; meaningless for the other roles.
        reasoning: The thought before an assistant's content (`reasoning_content` of the OpenAI-compatible servers).
            None where the data has none; an empty thought is "".
        weight: Weight of the turn's trainable tokens in the loss, above 0.
        name: The name of the speaker or of the tool, for templates that write it.
        tool_call_id: The call that a tool's message answers.
    """

    role: Role
    content: str
    loss: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    weight: float = 1.0
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row in canonical form.

    Attributes:
        messages: At most one system message, first; then the turns.
        tools: The function schemas that the assistant may call.
        media: In the order in which the contents name them.
        template_kwargs: Variables for the tokenizer's own chat template (such as `enable_thinking`), a JSON object.
    """

    messages: tuple[Message, ...]
    tools: tuple[Json, ...] = ()
    media: tuple[Media, ...] = ()
    template_kwargs: Mapping[str, Json] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system message."""
        return self.messages[1:] if self.system is not None else self.messages

    @property
    def images(self) -> tuple[str, ...]:
        """The paths of its images."""
        return tuple(one.path for one in self.media if one.kind == "image")


@dataclass(slots=True)
class Encoded:
    """Token ids and labels of one sample, equal lengths [T]. Not shifted: the model shifts.

    `labels` holds IGNORE_INDEX or the token at the same position; the first one is always IGNORE_INDEX, since there is
    no context to predict it from. `media`: what the ids have positions of, in order. `weights`: loss weights of the
    tokens, [T]; None where all are 1.
    """

    input_ids: list[int]
    labels: list[int] = field(default_factory=list)
    media: tuple[Media, ...] = ()
    weights: list[float] | None = None

    @property
    def num_trainable(self) -> int:
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the responses that a comparison holds.

    Attributes:
        messages: What follows the prompt: assistant turns, all trainable, with tool results between them.
        rank: 0 for the best one; equal ranks are ties.
        label: Whether it is desirable, where the data judges single responses.
    """

    messages: tuple[Message, ...]
    rank: int = 0
    label: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row of preference data: one prompt, and one or more responses to it, the best first.

    Attributes:
        prompt: Ends before the first response; no turn of it is trainable.
        margin: By how much the best response is better, where the data says so.
    """

    prompt: Conversation
    answers: tuple[Answer, ...]
    margin: float | None = None

    def conversation(self, index: int) -> Conversation:
        """Return the prompt with one of the responses."""
        return replace(self.prompt, messages=(*self.prompt.messages, *self.answers[index].messages))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of online training: what the model responds to, and what rewards may look at.

    Attributes:
        conversation: Ends where the response begins; no turn of it is trainable.
        reference: The response of the data; empty where it has none.
        columns: All cells of the row, as rewards get them.
    """

    conversation: Conversation
    reference: tuple[Message, ...] = ()
    columns: Mapping[str, Json] = field(default_factory=dict)
