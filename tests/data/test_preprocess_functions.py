"""Transcripts with function calls."""

from __future__ import annotations

import pytest

from llmtune.data.preprocess.functions import glaive
from llmtune.errors import RowError

USER = {"role": "user", "content": "q"}


def turns_of(chat: str):
    return glaive({"system": "SYSTEM: s", "chat": chat})["messages"]


def call(arguments, name="f", content=""):
    return {"role": "assistant", "content": content, "tool_calls": [{"name": name, "arguments": arguments}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("""{"name": "f", "arguments": '{"x": 1}'}""", call({"x": 1})),
        ("""{"name": "f", "arguments": '{\n  "x": 1,\n  "y": "a\nb"\n}'}""", call({"x": 1, "y": "a\nb"})),
        ("""{"name": "f", "arguments": '{"x": "it's", "y": "'}'"}'}""", call({"x": "it's", "y": "'}'"})),
        ("""{"name": "f", "arguments": '{}'}""", call({})),
        ("""{"name": "f", "arguments": {"x": 1}}""", call({"x": 1})),
        ("""{"name": "f"}""", call({})),
    ],
)
def test_calls_of_each_spelling_are_read(text, expected):
    assert turns_of(f"USER: q\n\n\nASSISTANT: <functioncall> {text} <|endoftext|>\n") == [USER, expected]


def test_words_before_a_call():
    chat = 'USER: q\nASSISTANT: I look.\n<functioncall> {"name": "f"} <|endoftext|>'
    assert turns_of(chat) == [USER, call({}, content="I look.")]


def test_speakers_only_at_the_start_of_a_line():
    assert turns_of("USER: what does ASSISTANT: mean?\nsecond line\nASSISTANT: a") == [
        {"role": "user", "content": "what does ASSISTANT: mean?\nsecond line"},
        {"role": "assistant", "content": "a"},
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"system": "SYSTEM: s", "chat": "hello USER: q"}, "begins with 'hello USER: q'"),
        ({"system": "SYSTEM: s", "chat": None}, "column 'chat' is missing"),
        ({"system": 'SYSTEM: s {"name": } x', "chat": "USER: q"}, "a function that is not JSON"),
        ({"system": 'SYSTEM: s {"name": "f"} and so on', "chat": "USER: q"}, "not JSON: 'and so on'"),
        ({"system": "SYSTEM: s", "chat": "USER: q\nASSISTANT: <functioncall> {\"arguments\": '{]'}"}, "is not JSON"),
    ],
)
def test_a_bad_transcript_is_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        glaive(row)


def test_functions_leave_the_system_prompt():
    assert glaive({"system": "SYSTEM: ", "chat": "USER: q"}) == {"messages": [USER]}
    assert glaive({"system": "SYSTEM: be kind", "chat": "USER: q"})["system"] == "be kind"
    made = glaive({"system": 'SYSTEM: Use them if required -\n{"name": "f"}\n\n{"name": "g"}\n', "chat": "USER: q"})
    assert made == {"messages": [USER], "tools": [{"name": "f"}, {"name": "g"}]}
