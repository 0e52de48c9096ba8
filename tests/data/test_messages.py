"""What stands inside messages: every key is read or reported, whatever list they stand in."""

from __future__ import annotations

from typing import Any

import pytest

from llmtune.data.canonical import from_record, to_record
from llmtune.data.contents import Found
from llmtune.data.formats import to_conversation
from llmtune.errors import RowError
from llmtune.types import Conversation, Message, ToolCall

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "r"}
CALL = {"name": "f", "arguments": {"x": 1}}
CALL_TEXT = '{"name": "f", "arguments": {"x": 1}}'


def read(messages: list[Any], **columns: Any) -> Conversation:
    conversation = to_conversation({"messages": messages, **columns})
    assert from_record(to_record(conversation)) == conversation
    return conversation


def answer(**keys: Any) -> Message:
    return read([Q, A | keys]).messages[-1]


def unused(row: dict[str, Any]) -> list[str]:
    found = Found()
    to_conversation(row, found=found)
    return list(found.unused)


# Thoughts


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_read_under_each_key(key):
    assert answer(**{key: "why"}).reasoning == "why"
    assert answer(**{key: ""}).reasoning == ""
    assert answer(**{key: None}).reasoning is None
    assert answer(**{key: [{"type": "text", "text": "why"}]}).reasoning == "why"
    assert answer(**{key: "why", "content": None}) == Message("assistant", "", True, reasoning="why")
    calls = answer(**{key: "why", "content": None, "tool_calls": [CALL]})
    assert calls == Message("assistant", "", True, (ToolCall("f", {"x": 1}),), reasoning="why")
    called = read([Q, {"role": "function_call", "content": CALL_TEXT, key: "why"}]).messages[-1]
    assert called.reasoning == "why"
    assert unused({"messages": [Q | {key: "x"}, A]}) == [f"messages[].{key}"]
    assert unused({"messages": [Q | {key: ""}, A]}) == []
    with pytest.raises(RowError, match=r"message 2 \(assistant\) has a number as its thought"):
        answer(**{key: 3})


def test_differing_thoughts_are_refused():
    assert answer(reasoning="why", thinking="why", reasoning_content="").reasoning == "why"
    with pytest.raises(RowError, match="several thoughts that differ; keep one of reasoning_content, thinking"):
        answer(thinking="a", reasoning_content="b")


@pytest.mark.parametrize(
    ("row", "thought"),
    [
        ({"prompt": [Q], "completion": [A | {"thinking": "why"}]}, "why"),
        ({"prompt": [Q], "chosen": [A | {"thinking": "why"}], "rejected": [A]}, "why"),
        ({"query": "q", "response": A | {"thinking": "why"}}, "why"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r", "thinking": "why"}]}, "why"),
        ({"conversation": [{"human": "q", "assistant": "r", "reasoning": "why"}]}, "why"),
        ({"query": "q", "response": "r", "history": [Q, A | {"thinking": "why"}]}, None),
    ],
)
def test_every_format_reads_the_keys_of_its_messages(row, thought):
    messages = to_conversation(row).messages
    assert messages[-1] == Message("assistant", "r", True, reasoning=thought)
    assert [message.reasoning for message in messages].count("why") == 1


# What contributes to the loss


@pytest.mark.parametrize(
    ("keys", "loss", "weight"),
    [
        ({}, True, 1.0),
        *(({key: value}, False, 1.0) for key in ("loss", "train", "trainable") for value in (False, 0)),
        *(({key: value}, True, 1.0) for key in ("loss", "train", "trainable") for value in (True, 1, None)),
        *(({key: 0}, False, 1.0) for key in ("weight", "loss_scale", "loss_weight")),
        *(({key: 0.25}, True, 0.25) for key in ("weight", "loss_scale", "loss_weight")),
        ({"weight": 3}, True, 3.0),
        ({"weight": 1, "loss_scale": 0.5}, True, 0.5),
        ({"weight": 0.5, "loss_scale": 0.5}, True, 0.5),
        ({"weight": 0.5, "train": False}, False, 1.0),
        ({"weight": 0.0, "train": True}, False, 1.0),
    ],
)
def test_loss_marks_set_loss_and_weight(keys, loss, weight):
    assert answer(**keys) == Message("assistant", "r", loss, weight=weight)
    called = read([Q, {"role": "tool_call", "content": CALL_TEXT, **keys}]).messages[-1]
    assert (called.loss, called.weight) == (loss, weight)
    pair = to_conversation({"conversations": [{"human": "q", "assistant": "r", **keys}]}).messages[-1]
    assert (pair.loss, pair.weight) == (loss, weight)


def test_parts_of_one_turn_with_different_weights():
    call = {"role": "tool_call", "content": CALL_TEXT}
    with pytest.raises(RowError, match="messages 2 and 3 are one assistant turn, but have different weights"):
        read([Q, A | {"weight": 0.5}, call])
    with pytest.raises(RowError, match="but only one of them is trainable"):
        read([Q, A | {"train": False}, call])
    with pytest.raises(RowError, match="have different weights in the loss"):
        read([Q, A | {"weight": 0.5}, A])
    with pytest.raises(RowError, match="only one of them is trainable"):
        read([Q, A | {"loss_scale": 0}, A])
    joined = read([Q, A | {"weight": 0.5}, call | {"loss_scale": 0.5}]).messages[-1]
    assert (joined.content, len(joined.tool_calls), joined.weight) == ("r", 1, 0.5)


def test_a_context_has_no_weights():
    messages = to_conversation({"prompt": [Q, A | {"weight": 0.5}, Q], "completion": "r"}).messages
    assert [(message.loss, message.weight) for message in messages] == [(False, 1.0)] * 3 + [(True, 1.0)]


# Names, ids, variables of the template


def test_names_and_ids_of_messages_are_kept():
    messages = read([
        Q | {"name": "Ann"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": CALL}, CALL | {"id": 2}]},
        {"role": "tool", "name": "f", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": 2, "content": "4", "name": ""},
        A,
    ]).messages  # fmt: skip
    assert messages[0] == Message("user", "q", name="Ann")
    assert messages[1].tool_calls == (ToolCall("f", {"x": 1}, "c1"), ToolCall("f", {"x": 1}, "2"))
    assert messages[2] == Message("tool", "3", name="f", tool_call_id="c1")
    assert messages[3] == Message("tool", "4", tool_call_id="2")


@pytest.mark.parametrize("column", ["chat_template_kwargs", "template_kwargs"])
def test_template_kwargs_are_an_object(column):
    for given in ({"enable_thinking": False}, '{"enable_thinking": false}'):
        assert read([Q, A], **{column: given}).template_kwargs == {"enable_thinking": False}
        assert to_conversation({"query": "q", "response": "r", column: given}).template_kwargs
    for empty in ({}, "", None):
        assert read([Q, A], **{column: empty}).template_kwargs == {}
    with pytest.raises(RowError, match="'chat_template_kwargs' holds a list, not an object"):
        read([Q, A], **{column: [1]})
    with pytest.raises(RowError, match="half of a surrogate pair"):
        read([Q, A], **{column: {"a": "\ud800"}})


# Images


@pytest.mark.parametrize(
    ("keys", "content", "images"),
    [
        ({"images": ["a.png"]}, "<image>q", ("a.png",)),
        ({"image": "a.png"}, "<image>q", ("a.png",)),
        ({"images": ["a.png", "b.png"]}, "<image><image>q", ("a.png", "b.png")),
        ({"images": [{"path": "a.png"}], "content": "see <image> there"}, "see <image> there", ("a.png",)),
        ({"images": '["a.png"]'}, "<image>q", ("a.png",)),
        ({"images": []}, "q", ()),
        ({"images": ["a.png", "b.png"], "content": "q <image>"}, "<image>q <image>", ("a.png", "b.png")),
        ({"images": ["a.png"], "content": [{"type": "image"}, {"type": "text", "text": "q"}]}, "<image>q", ("a.png",)),
        ({"images": ["a.png"], "content": "<img>a.png</img>q"}, "<img>a.png</img>q", ("a.png",)),
        ({"images": ["b.png"], "content": "<img>a.png</img><image>"}, "<img>a.png</img><image>", ("a.png", "b.png")),
        ({"images": ["a.png"], "content": [{"type": "image", "image": "a.png"}]}, "<image>", ("a.png",)),
    ],
)
def test_images_of_a_message(keys, content, images):
    row = read([Q | keys, A])
    assert (row.messages[0].content, row.images) == (content, images)


def test_images_keep_the_order_of_their_messages():
    part = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "2"}}, "then"]}
    row = read([Q | {"images": ["1"]}, A, part, A, Q | {"image": "3"}, A])
    assert [message.content for message in row.messages[::2]] == ["<image>q", "<image>then", "<image>q"]
    assert row.images == ("1", "2", "3")
    pair = to_conversation({"conversations": [{"human": "q", "assistant": "r", "images": ["1"]}]})
    assert (pair.messages[0].content, pair.images) == ("<image>q", ("1",))


def test_images_that_no_question_shows():
    for message in (A | {"images": ["a"]}, A | {"content": [{"type": "image", "image": "a"}]}):
        with pytest.raises(RowError, match="only a user message may hold an image"):
            read([Q, message])
    with pytest.raises(RowError, match="both in the images column and inside the contents"):
        read([Q | {"images": ["a"]}, A], images=["b"])
    with pytest.raises(RowError, match="both in its parts and beside them"):
        read([Q | {"images": ["a"], "content": [{"type": "image", "image": "b"}]}, A])


# Unknown keys


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [Q | {"foo": 1}, A | {"bar": "x", "baz": None}]}, ["messages[].foo", "messages[].bar"]),
        ({"conversations": [{"from": "human", "value": "q", "foo": 1}, A]}, ["conversations[].foo"]),
        ({"conversation": [{"human": "q", "assistant": "r", "foo": 1}]}, ["conversation[].foo"]),
        ({"prompt": [Q | {"foo": 1}], "completion": [A | {"bar": 1}]}, ["prompt[].foo", "completion[].bar"]),
        ({"prompt": [Q], "chosen": A | {"foo": 1}, "rejected": A | {"bar": 1}}, ["chosen[].foo"]),
        ({"query": "q", "response": "r", "history": [Q | {"foo": 1}, A]}, ["history[].foo"]),
        ({"query": "q", "response": "r", "history": [{"query": "a", "response": "b", "foo": 1}]}, ["history[].foo"]),
        ({"messages": [Q, A | {"content": [{"type": "text", "text": "r", "foo": 1}]}]}, ["messages[].content[].foo"]),
        ({"messages": [Q | {"value": "other"}, A]}, ["messages[].value"]),
        ({"messages": [Q | {"videos": ["a"]}, A]}, ["messages[].videos"]),
    ],
)
def test_unknown_keys_are_reported(row, expected):
    assert unused(row) == expected


def test_capitalised_keys_are_read():
    assert read([{"Role": "user", "Content": "q"}, {"From": "gpt", "VALUE": "r", "Weight": 0}]).messages == (
        Message("user", "q"),
        Message("assistant", "r"),
    )


# Parts


def parts(*items: Any) -> list[Any]:
    return [item if isinstance(item, dict) else {"type": item[0], "value": item[1]} for item in items]


NEWER = [
    {"role": "system", "content": parts(("text", "s")), "loss_weight": 0.0},
    {"role": "user", "content": parts(("image_url", "a.png"), ("text", "q")), "loss_weight": 0.0},
    {
        "role": "assistant",
        "content": parts(("reasoning", "why"), ("text", "wait"), ("tool_call", CALL_TEXT), ("tool_call", CALL_TEXT)),
        "loss_weight": 0.5,
    },
    {"role": "tool", "content": parts(("text", "3")), "loss_weight": 0.0},
    {"role": "assistant", "content": parts(("text", "r")), "loss_weight": 0.0},
]
CALLED = ToolCall("f", {"x": 1})
NEWER_READ = (
    Message("system", "s"),
    Message("user", "<image>q"),
    Message("assistant", "wait", True, (CALLED, CALLED), reasoning="why", weight=0.5),
    Message("tool", "3"),
    Message("assistant", "r"),
)


def test_parts_with_values_are_read():
    row = read(NEWER, tools='[{"name": "f"}]')
    assert row.messages == NEWER_READ
    assert row.images == ("a.png",)
    assert row.tools == ({"type": "function", "function": {"name": "f"}},)
    inside = [{"role": "system", "content": parts(("text", "s"), ("tools", '[{"name": "f"}]'))}, *NEWER[1:]]
    assert read(inside) == row


def test_preference_rows_of_messages():
    other = [*NEWER[:-1], {"role": "assistant", "content": parts(("text", "bad")), "loss_weight": 1.0}]
    chosen = [*NEWER[:-1], {"role": "assistant", "content": parts(("text", "r")), "loss_weight": 1.0}]
    row = to_conversation({"chosen_messages": chosen, "rejected_messages": other})
    assert [message.content for message in row.messages] == ["s", "<image>q", "wait", "3", "r"]
    assert [message.loss for message in row.messages] == [False] * 4 + [True]
    context = to_conversation({"messages": [Q], "chosen_messages": [A], "rejected_messages": [A]})
    assert context.messages == (Message("user", "q"), Message("assistant", "r", True))


@pytest.mark.parametrize(
    ("role", "content", "text", "thought"),
    [
        ("user", [{"type": "input_text", "text": "x"}], "x", None),
        ("assistant", [{"type": "output_text", "text": "x", "annotations": None}], "x", None),
        ("assistant", [{"type": "refusal", "refusal": "x"}], "x", None),
        ("assistant", [{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "x"}], "x", "why"),
        ("assistant", [{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]}, "x"], "x", "why"),
        ("assistant", [{"type": "reasoning", "text": "a"}, {"type": "reasoning", "text": "b"}, "x"], "x", "a\n\nb"),
        ("user", {"type": "text", "text": "x"}, "x", None),
        ("user", ["x", "y"], "xy", None),
    ],
)
def test_parts_of_other_clients(role, content, text, thought):
    message = {"role": role, "content": content}
    found = read([message, A] if role == "user" else [Q, message]).messages
    found = found[0] if role == "user" else found[1]
    assert (found.content, found.reasoning) == (text, thought)


def test_a_refusal_beside_an_empty_content():
    assert answer(content=None, refusal="no").content == "no"
    assert unused({"messages": [Q, A | {"refusal": "no"}]}) == ["messages[].refusal"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (A | {"content": [{"type": "video", "url": "a"}]}, "type 'video', which is not supported; supported: text"),
        (A | {"content": [{"type": "text", "text": "a"}, {"x": 1}]}, "a part without a type"),
        (A | {"content": parts(("text", "r"), ("reasoning", "why"))}, "a thought after its text"),
        (A | {"content": parts(("tool_call", CALL_TEXT), ("text", "r"))}, "text after its tool calls"),
        (A | {"content": parts(("text", {"a": 1}))}, "part of type 'text' that holds an object, not text"),
        (A | {"content": parts(("tool_call", "f(x)"))}, "is text that is not JSON"),
    ],
)  # fmt: skip
def test_a_bad_part_is_refused_with_its_reason(message, reason):
    with pytest.raises(RowError, match=reason):
        read([Q, message])
    with pytest.raises(RowError, match="only an assistant message may"):
        read([Q | {"content": parts(("reasoning", "why"))}, A])


# Values that are no text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["Oslo", "Bergen"], '["Oslo", "Bergen"]'),
        ({"city": "Zürich"}, '{"city": "Zürich"}'),
        ([{"type": "city", "name": "Oslo"}], '[{"type": "city", "name": "Oslo"}]'),
        ({"type": "text", "size": 3}, '{"type": "text", "size": 3}'),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ({"type": "text", "text": "a"}, "a"),
        ([], "[]"), ({}, "{}"), (True, "true"), (4, "4"), (0.5, "0.5"), (["x"], '["x"]'), ("", ""),
        ([1, None, {"a": [2]}], '[1, null, {"a": [2]}]'),
    ],
)  # fmt: skip
def test_structured_results_become_json(content, text):
    for role in ("tool", "observation"):
        messages = read(
            [Q, {"role": "assistant", "tool_calls": [CALL]}, {"role": role, "content": content}, A]
        ).messages
        assert messages[2].content == text


def test_a_tool_shows_no_image():
    for content in ([{"type": "image", "image": "a.png"}], ["see", {"type": "image_url", "image_url": {"url": "b"}}]):
        with pytest.raises(RowError, match="an image in a tool result"):
            read([Q, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": content}, A])


@pytest.mark.parametrize(
    ("content", "text"), [(4, "4"), (4.5, "4.5"), ({"a": 1}, '{"a": 1}'), ([{"a": 1}], '[{"a": 1}]'), ([1], "[1]")]
)
def test_answers_that_are_no_text(content, text):
    assert answer(content=content).content == text
    assert read([Q | {"content": content}, A]).messages[0].content == text


def test_structured_responses_and_numbers_become_text():
    assert to_conversation({"query": "q", "response": {"label": "x"}}).messages[-1].content == '{"label": "x"}'
    assert to_conversation({"query": {"a": 1}, "response": "r"}).messages[0] == Message("user", '{"a": 1}')
    history = to_conversation({"query": "q", "response": 4, "history": [["a", 1]]}).messages
    assert [message.content for message in history] == ["a", "1", "q", "4"]


def test_deep_values_are_named():
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    for row in (
        {"messages": [Q, A], "tools": [deep]},
        {"messages": [Q, A | {"tool_calls": [{"name": "f", "arguments": deep}]}]},
        {"messages": [Q, A | {"content": deep}]},
        {"messages": [Q, A], "chat_template_kwargs": deep},
    ):
        with pytest.raises(RowError, match="nested more than 100 levels deep"):
            to_conversation(row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A | {"reasoning": "\ud800"}]},
        {"messages": [Q | {"name": "\ud800"}, A]},
        {"messages": [Q, A | {"tool_calls": [CALL | {"id": "\ud800"}]}]},
        {"messages": [Q, A | {"content": {"a": "\ud800"}}]},
        {"messages": [Q | {"images": ["\ud800"]}, A]},
    ],
)
def test_half_surrogates_are_named(row):
    with pytest.raises(RowError, match="half of a surrogate pair"):
        to_conversation(row)
