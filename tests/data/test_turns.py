"""Turns in every order: taken where the meaning is plain, refused where it is not, and said either way."""

from __future__ import annotations

from typing import Any

import pytest

from llmtune.data.contents import JOINED, OPENING, SYSTEM_LATER, Found
from llmtune.data.formats import to_conversation
from llmtune.errors import RowError

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
CALL = {"name": "f", "arguments": {}}


def turns(text: str) -> list[dict[str, Any]]:
    """`u a` is a question `u1` and an answer `a2`; `A` is an answer that calls a tool."""
    made = []
    for number, name in enumerate(text.split(), start=1):
        calls = {"tool_calls": [CALL]} if name == "A" else {}
        made.append({"role": ROLES[name.lower()], "content": f"{name}{number}", **calls})
    return made


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        ("u a u a", ["u1", "a2", "u3", "a4"], []),
        ("u u a", ["u1\n\nu2", "a3"], [JOINED]),
        ("u a a", ["u1", "a2\n\na3"], [JOINED]),
        ("u a a a u u a", ["u1", "a2\n\na3\n\na4", "u5\n\nu6", "a7"], [JOINED]),
        ("s s u a", ["s1\n\ns2", "u3", "a4"], [JOINED]),
        ("u a s u a", ["u1", "a2", "s3\n\nu4", "a5"], [SYSTEM_LATER]),
        ("u s a", ["u1\n\ns2", "a3"], [SYSTEM_LATER]),
        ("u a s s u a", ["u1", "a2", "s3\n\ns4\n\nu5", "a6"], [JOINED, SYSTEM_LATER]),
        ("a u a", ["u2", "a3"], [OPENING]),
        ("s a u a", ["s1", "u3", "a4"], [OPENING]),
        ("a a u a", ["u3", "a4"], [JOINED, OPENING]),
        ("u a A t a", ["u1", "a2\n\nA3", "t4", "a5"], [JOINED]),
        ("a a", ["a1\n\na2"], [JOINED]),
    ],
)
def test_orders_that_are_taken(given, expected, notes):
    found = Found()
    row = to_conversation({"messages": turns(given)}, found=found)
    assert [message.content for message in row.messages] == expected
    assert sorted(found.notes) == sorted(notes)
    assert all(message.loss == (message.role == "assistant") for message in row.messages)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("u A a", "an assistant message follows tool calls; expected their results"),
        ("A u a", "the first turn is an assistant message"),
        ("A t u a", "the first turn is an assistant message"),
        ("t u a", "the first turn is a tool message"),
        ("u t a", "a tool message follows a user message"),
        ("u a s a", "a system message comes after the first message, with no user message beside it"),
        ("u a s", "a system message comes after"),
        ("u a u", "ends with a user message: there is no response to train on"),
        ("s", "no user or assistant message"),
    ],
)
def test_orders_that_are_refused(given, reason):
    with pytest.raises(RowError, match=reason):
        to_conversation({"messages": turns(given)})


def test_two_speakers_stay_two():
    first, second = {"role": "user", "content": "a", "name": "Ann"}, {"role": "user", "content": "b", "name": "Bob"}
    with pytest.raises(RowError, match="a user message follows a user message"):
        to_conversation({"messages": [first, second, *turns("a")]})
    joined = to_conversation({"messages": [first, first, *turns("a")]}).messages[0]
    assert (joined.content, joined.name) == ("a\n\na", "Ann")


def test_thoughts_of_joined_turns():
    thinking = {"role": "assistant", "content": "", "reasoning": "why"}
    answer = {"role": "assistant", "content": "r", "reasoning": "so"}
    joined = to_conversation({"messages": [*turns("u"), thinking, answer]}).messages[1]
    assert (joined.content, joined.reasoning) == ("r", "why\n\nso")
    with pytest.raises(RowError, match="a thought follows the text of the same turn"):
        to_conversation({"messages": [*turns("u"), answer, answer]})


def test_a_struct_of_lists():
    """A list of structs comes out of some Arrow files as a struct of lists."""
    talk = {"role": ["user", "assistant"], "content": ["q", "r"], "weight": [None, 0.5]}
    row = to_conversation({"messages": talk})
    assert [(message.role, message.content, message.weight) for message in row.messages] == [
        ("user", "q", 1.0),
        ("assistant", "r", 0.5),
    ]
    pairs = {"from": ["human", "gpt"], "value": ["q", "r"]}
    assert [message.content for message in to_conversation({"conversations": pairs}).messages] == ["q", "r"]
    one = {"role": ["user"], "content": ["q"]}
    assert to_conversation({"prompt": one, "completion": "r"}).messages[0].content == "q"
    with pytest.raises(RowError, match="holds an object, not a list of messages"):
        to_conversation({"messages": {"role": ["user"], "content": ["a", "b"]}})
