"""A conversation survives the way through the Arrow schema, and a canonical row is itself a row."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune.data.canonical import SCHEMA, from_record, to_record
from llmtune.data.formats import shape_of, to_conversation
from llmtune.errors import RowError
from llmtune.types import Conversation, Message, ToolCall

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
objects = st.dictionaries(texts, values, max_size=3)


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


names = st.none() | texts.filter(bool)
calls = st.builds(ToolCall, texts, objects | texts.filter(lambda text: not is_object(text)), names)
users = st.builds(Message, st.just("user"), texts, name=names)
tools = st.builds(Message, st.just("tool"), texts, name=names, tool_call_id=names)


@st.composite
def answers(draw):
    loss = draw(st.booleans())
    weight = draw(st.floats(0.125, 8)) if loss else 1.0
    called = tuple(draw(st.lists(calls, max_size=2)))
    return Message("assistant", draw(texts), loss, called, reasoning=draw(st.none() | texts), weight=weight)


@st.composite
def conversations(draw):
    messages = draw(st.lists(st.builds(Message, st.just("system"), texts), max_size=1))
    if draw(st.booleans()):
        messages.append(draw(answers()))
    else:
        for _ in range(draw(st.integers(1, 3))):
            asked = draw(st.lists(tools, min_size=1, max_size=2)) if len(messages) > 1 and draw(st.booleans()) else []
            messages += [*(asked or [draw(users)]), draw(answers())]
    return Conversation(
        tuple(messages),
        tuple({"type": "function", "function": schema} for schema in draw(st.lists(objects, max_size=2))),
        tuple(draw(st.lists(texts, max_size=2))),
        draw(objects),
    )


@pytest.mark.medium
@given(conversations())
def test_a_record_gives_its_conversation_back(conversation):
    record = to_record(conversation)
    stored = pa.RecordBatch.from_pylist([record], schema=SCHEMA).to_pylist()[0]
    assert stored == record
    assert from_record(stored) == conversation
    assert shape_of(stored) == "messages"
    assert to_conversation(stored) == conversation


def test_what_json_cannot_write():
    for value in ({"a": b"x"}, {"a": "\ud800"}):
        conversation = Conversation((Message("assistant", "r", True),), ({"name": "f", "parameters": value},))
        with pytest.raises(RowError, match=r"cannot be written as JSON|half of a surrogate pair"):
            to_record(conversation)
