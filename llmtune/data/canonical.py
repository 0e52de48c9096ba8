"""The Arrow schema that every dataset is converted to.

Tool calls and schemas are JSON text: as Arrow structs, each would be padded with the fields of all the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from llmtune.data.values import json_text
from llmtune.types import (
    MEDIA_COLUMNS,
    Answer,
    Comparison,
    Conversation,
    Json,
    Message,
    Prompt,
    RowKind,
    ToolCall,
    media_columns,
    media_of,
)

FORMATS_VERSION = 5
"""Part of every cache key. Increase it when a row, or the report beside it, could differ from before."""

MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("loss", pa.bool_()),
        ("tool_calls", pa.string()),
        ("reasoning", pa.string()),
        ("weight", pa.float64()),
        ("name", pa.string()),
        ("tool_call_id", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),
        *((column, pa.list_(pa.string())) for column in MEDIA_COLUMNS.values()),
        ("template_kwargs", pa.string()),
    ]
)
ANSWER = pa.struct([("messages", pa.list_(MESSAGE)), ("rank", pa.int32()), ("label", pa.bool_())])
COMPARISON_SCHEMA = pa.schema([*SCHEMA, ("answers", pa.list_(ANSWER)), ("margin", pa.float64())])
"""Schema of preference rows: the columns of a conversation hold the prompt."""


PROMPT_SCHEMA = pa.schema([*COMPARISON_SCHEMA, ("columns", pa.string())])
"""Schema of prompts: `answers` holds the reference response, if any; `columns` is JSON text."""


def schema_of(columns: Iterable[str]) -> pa.Schema:
    """Return the canonical schema that has these columns."""
    names = set(columns)
    return PROMPT_SCHEMA if "columns" in names else COMPARISON_SCHEMA if "answers" in names else SCHEMA


def schema_for(kind: RowKind) -> pa.Schema:
    """Return the canonical schema of rows that are read as this kind."""
    return {"conversations": SCHEMA, "prompts": PROMPT_SCHEMA}.get(kind, COMPARISON_SCHEMA)


def to_record(conversation: Conversation) -> dict[str, Any]:
    """Return a row of SCHEMA.

    Raises:
        RowError: A tool schema or an argument that cannot be written as JSON.
    """
    return {
        "messages": [_message_record(message) for message in conversation.messages],
        "tools": _json(conversation.tools) if conversation.tools else None,
        **{column: [] for column in MEDIA_COLUMNS.values()},
        **media_columns(conversation.media),
        "template_kwargs": _json(dict(conversation.template_kwargs)) if conversation.template_kwargs else None,
    }


def _message_record(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": message.content,
        "loss": message.loss,
        "tool_calls": _calls_text(message.tool_calls),
        "reasoning": message.reasoning,
        "weight": message.weight,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }


DEFAULTS: dict[str, Any] = {
    "reasoning": None,
    "weight": 1.0,
    "name": None,
    "tool_call_id": None,
    "template_kwargs": None,
}
"""Defaults of fields added to the schema later. Rows with the defaults keep their digest and so their sampling."""


def without_defaults(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without later fields that have their default."""

    def kept(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in DEFAULTS or value != DEFAULTS[name]}

    return kept({**record, "messages": [kept(message) for message in record["messages"]]})


def from_record(record: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a record: the inverse of `to_record`."""
    messages = tuple(map(_message_of, record["messages"]))
    tools = tuple(json.loads(record["tools"])) if record["tools"] else ()
    template_kwargs = json.loads(record["template_kwargs"]) if record["template_kwargs"] else {}
    return Conversation(messages, tools, tuple(media_of(record)), template_kwargs)


def _message_of(record: Mapping[str, Any]) -> Message:
    return Message(
        record["role"],
        record["content"],
        bool(record["loss"]),
        _calls(record["tool_calls"]),
        reasoning=record["reasoning"],
        weight=record["weight"],
        name=record["name"],
        tool_call_id=record["tool_call_id"],
    )


def to_comparison_record(comparison: Comparison) -> dict[str, Any]:
    """Return a row of COMPARISON_SCHEMA. Raises as `to_record` does."""
    answers = [
        {"messages": [_message_record(one) for one in answer.messages], "rank": answer.rank, "label": answer.label}
        for answer in comparison.answers
    ]
    return to_record(comparison.prompt) | {"answers": answers, "margin": comparison.margin}


def to_prompt_record(prompt: Prompt) -> dict[str, Any]:
    """Return a row of PROMPT_SCHEMA.

    Raises:
        RowError: A cell, a tool schema or an argument that cannot be written as JSON.
    """
    answers = [{"messages": [_message_record(one) for one in prompt.reference], "rank": 0, "label": None}]
    return to_record(prompt.conversation) | {
        "answers": answers if prompt.reference else [],
        "margin": None,
        "columns": json_text(dict(prompt.columns), "a column"),
    }


def prompt_of(record: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a record: the inverse of `to_prompt_record`."""
    reference = tuple(map(_message_of, record["answers"][0]["messages"])) if record["answers"] else ()
    return Prompt(from_record(record), reference, json.loads(record["columns"]))


def conversation_of(record: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a record: of a comparison, with the best response."""
    return comparison_of(record).conversation(0) if record.get("answers") else from_record(record)


def comparison_of(record: Mapping[str, Any]) -> Comparison:
    """Return the comparison of a record: the inverse of `to_comparison_record`."""
    answers = tuple(
        Answer(tuple(map(_message_of, answer["messages"])), answer["rank"], answer["label"])
        for answer in record["answers"]
    )
    return Comparison(from_record(record), answers, record["margin"])


def _calls_text(calls: tuple[ToolCall, ...]) -> str | None:
    if not calls:
        return None
    return _json(
        [{"name": call.name, "arguments": call.arguments} | ({"id": call.id} if call.id else {}) for call in calls]
    )


def _calls(text: str | None) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call["name"], call["arguments"], call.get("id")) for call in json.loads(text)) if text else ()


def _json(value: Json) -> str:
    return json_text(value, "a tool schema, a tool call or a template's variable")
