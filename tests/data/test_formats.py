"""Rows of every shape, right and wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from llmtune.data.formats import rename_columns, shape_of, to_conversation
from llmtune.data.shapes import recognise
from llmtune.errors import RowError
from llmtune.types import Conversation, Message, ToolCall

SYSTEM = Message("system", "s")
USER = Message("user", "q")
LEARNED = Message("assistant", "r", loss=True)
OLD = (Message("user", "q0"), Message("assistant", "r0"))
OLD_LEARNED = (Message("user", "q0"), Message("assistant", "r0", loss=True))
CALL = ToolCall("f", {"x": 1})
PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
TURNS0 = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "r0"}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": 0}}}


def messages(*items: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in items]


GOOD = [
    ({"query": "q", "response": "r"}, "query-response", (USER, LEARNED)),
    ({"query": "q", "response": "r", "history": None, "system": None}, "query-response", (USER, LEARNED)),
    ({"query": "q", "response": "r", "history": [], "system": ""}, "query-response", (USER, LEARNED)),
    ({"query": "q", "response": "r", "history": [["q0", "r0"]]}, "query-response", (*OLD, USER, LEARNED)),
    ({"query": "q", "response": "r", "history": '[["q0", "r0"]]'}, "query-response", (*OLD, USER, LEARNED)),
    ({"query": "q", "response": "r", "history": "[('q0', 'r0')]"}, "query-response", (*OLD, USER, LEARNED)),
    (
        {"query": "q", "response": "r", "history": [{"query": "q0", "response": "r0"}], "system": "s"},
        "query-response",
        (SYSTEM, *OLD, USER, LEARNED),
    ),
    ({"query": "q", "response": "r", "history": TURNS0}, "query-response", (*OLD, USER, LEARNED)),
    ({"query": 3, "response": 3.3}, "query-response", (Message("user", "3"), Message("assistant", "3.3", True))),
    ({"question": "q", "answer": "r"}, "query-response", (USER, LEARNED)),
    ({"question": "q", "target": "r"}, "query-response", (USER, LEARNED)),
    ({"prompt": "q", "response": "r", "tag": "zh"}, "query-response", (USER, LEARNED)),
    ({"prompt": "q", "completion": "r"}, "prompt-completion", (USER, LEARNED)),
    ({"prompt": PAIR[:1], "completion": PAIR[1:]}, "prompt-completion", (USER, LEARNED)),
    ({"prompt": [*TURNS0, PAIR[0]], "completion": "r"}, "prompt-completion", (*OLD, USER, LEARNED)),
    ({"instruction": "q", "output": "r"}, "alpaca", (USER, LEARNED)),
    ({"instruction": "q", "input": "", "output": "r"}, "alpaca", (USER, LEARNED)),
    ({"instruction": "q", "input": None, "output": "r"}, "alpaca", (USER, LEARNED)),
    ({"instruction": "", "input": "q", "output": "r"}, "alpaca", (USER, LEARNED)),
    ({"instruction": None, "input": "q", "output": "r"}, "alpaca", (USER, LEARNED)),
    ({"instruction": "a", "input": "b", "output": "r"}, "alpaca", (Message("user", "a\nb"), LEARNED)),
    (
        {"instruction": "q", "output": "r", "history": [["q0", "r0"]], "system": "s"},
        "alpaca",
        (SYSTEM, *OLD, USER, LEARNED),
    ),
    ({"messages": PAIR}, "messages", (USER, LEARNED)),
    ({"messages": json.dumps(PAIR)}, "messages", (USER, LEARNED)),
    ({"messages": repr(PAIR)}, "messages", (USER, LEARNED)),
    ({"messages": [*TURNS0, *PAIR], "system": "s", "label": True}, "messages", (SYSTEM, *OLD_LEARNED, USER, LEARNED)),
    ({"messages": [{**TURNS0[0]}, {**TURNS0[1], "weight": 0}, *PAIR]}, "messages", (*OLD, USER, LEARNED)),
    ({"messages": [{**TURNS0[0]}, {**TURNS0[1], "loss": False}, *PAIR]}, "messages", (*OLD, USER, LEARNED)),
    ({"messages": [{**PAIR[0], "loss": True}, {**PAIR[1], "weight": None}]}, "messages", (USER, LEARNED)),
    (
        {"messages": messages(("system", ""), ("user", "q"), ("assistant", "r"))},
        "messages",
        (Message("system", ""), USER, LEARNED),
    ),
    ({"messages": [{"role": "system", "content": "s"}, *PAIR], "system": "s"}, "messages", (SYSTEM, USER, LEARNED)),
    ({"messages": messages(("developer", "s"), ("human", "q"), ("gpt", "r"))}, "messages", (SYSTEM, USER, LEARNED)),
    ({"messages": messages(("User", "q"), ("chatgpt", "r"))}, "messages", (USER, LEARNED)),
    (
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r", "weight": None}],
            "system": "s",
        },
        "conversations",
        (SYSTEM, USER, LEARNED),
    ),
    ({"conversations": PAIR}, "messages", (USER, LEARNED)),
    (
        {"conversations": "[{'from': 'user', 'value': 'q'}, {'from': 'bot', 'value': 'r'}]"},
        "conversations",
        (USER, LEARNED),
    ),
    ({"conversation": [{"human": "q", "assistant": "r"}]}, "human-assistant", (USER, LEARNED)),
    (
        {"conversations": [{"human": "q0", "assistant": "r0"}, {"human": "q", "assistant": "r"}]},
        "human-assistant",
        (*OLD_LEARNED, USER, LEARNED),
    ),
    ({"text": "r"}, "text", (LEARNED,)),
    ({"text": "r", "meta": {"a": 1}}, "text", (LEARNED,)),
    ({"response": "r"}, "response-only", (LEARNED,)),
    ({"system": "s", "query": math.nan, "response": "r"}, "response-only", (SYSTEM, LEARNED)),
    ({"prompt": "q", "chosen": "r", "rejected": "x"}, "preference", (USER, LEARNED)),
    ({"prompt": PAIR[:1], "chosen": PAIR[1:], "rejected": PAIR[1:]}, "preference", (USER, LEARNED)),
    ({"chosen": PAIR, "rejected": PAIR}, "preference", (USER, LEARNED)),
    ({"prompt": "q", "chosen": PAIR, "rejected": PAIR, "messages": PAIR}, "preference", (USER, LEARNED)),
    (
        {"instruction": "q", "input": "", "chosen": "r", "rejected": "x", "system": "s"},
        "preference",
        (SYSTEM, USER, LEARNED),
    ),
    (
        {"conversations": [*TURNS0, PAIR[0]], "chosen": {"from": "gpt", "value": "r"}, "rejected": PAIR[1]},
        "preference",
        (*OLD, USER, LEARNED),
    ),
]


@pytest.mark.parametrize(("row", "shape", "expected"), GOOD)
def test_each_format_becomes_its_conversation(row, shape, expected):
    before = repr(row)
    assert shape_of(row) == shape
    assert to_conversation(row) == Conversation(expected)
    assert repr(row) == before


CALL_JSON = '{"name": "f", "arguments": {"x": 1}}'
CALLING = Message("assistant", "", True, (CALL,))
TOOL_ROWS = [
    messages(("user", "q"), ("function_call", CALL_JSON), ("observation", "3"), ("gpt", "r")),
    messages(("user", "q"), ("tool_call", f"[{CALL_JSON}]"), ("tool_response", "3"), ("model", "r")),
    [
        {"role": "user", "content": "q", "tool_calls": None, "name": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "content": "3", "tool_call_id": "1", "tool_calls": []},
        {"role": "assistant", "content": "r", "tool_calls": None},
    ],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "ipython", "content": "3"},
        {"role": "assistant", "content": "r", "tool_calls": "[]"},
    ],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "3"},
        {"role": "assistant", "content": "r"},
    ],
]


@pytest.mark.parametrize("rows", TOOL_ROWS)
def test_every_spelling_of_tool_calls_reads_alike(rows):
    """Whatever the calls look like; names and ids are kept as `test_names_and_ids_of_messages_are_kept` says."""
    found = [
        replace(one, name=None, tool_call_id=None, tool_calls=tuple(replace(call, id=None) for call in one.tool_calls))
        for one in to_conversation({"messages": rows}).messages
    ]
    assert tuple(found) == (USER, CALLING, Message("tool", "3"), LEARNED)


def test_text_and_calls_are_one_turn():
    rows = messages(("user", "q"), ("gpt", "wait"), ("function_call", CALL_JSON), ("function_call", CALL_JSON),
                    ("tool", "1"), ("tool", "2"), ("gpt", "r"))  # fmt: skip
    expected = (
        USER,
        Message("assistant", "wait", True, (CALL, CALL)),
        Message("tool", "1"),
        Message("tool", "2"),
        LEARNED,
    )
    assert to_conversation({"messages": rows}).messages == expected


def test_arguments_keep_what_the_data_says():
    for given, kept in [("not json", "not json"), ('"x"', '"x"'), ("5", "5"), ({"a": None}, {"a": None}), (None, {})]:
        rows = [*PAIR[:1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": given}]}]
        assert to_conversation({"messages": rows}).messages[1].tool_calls == (ToolCall("f", kept),)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, ()), ("", ()), ("[]", ()), ([], ()),
        ([FUNCTION], (FUNCTION,)),
        ([FUNCTION["function"]], (FUNCTION,)),
        (json.dumps([FUNCTION]), (FUNCTION,)),
        (json.dumps(FUNCTION), (FUNCTION,)),
        ([json.dumps(FUNCTION)], (FUNCTION,)),
        ([{"type": "function", "x": None, "function": {"name": "f", "y": None, "parameters": {"type": "object",
          "z": None, "default": 0}}}], (FUNCTION,)),
        ('[{"name": "f", "default": null}]', ({"type": "function", "function": {"name": "f", "default": None}},)),
        (json.dumps(FUNCTION["function"]), (FUNCTION,)),
        ([json.dumps(FUNCTION["function"])], (FUNCTION,)),
        ([{"function": FUNCTION["function"]}], (FUNCTION,)),
        ([{"type": "function", **FUNCTION["function"]}], (FUNCTION,)),
        ([{"name": "f", "input_schema": FUNCTION["function"]["parameters"]}], (FUNCTION,)),
        ([{"type": "custom", "name": "f", "inputSchema": FUNCTION["function"]["parameters"]}], (FUNCTION,)),
        ([{"type": "web_search"}, {"type": "web_search", "name": "w"}],
         ({"type": "web_search"}, {"type": "web_search", "name": "w"})),
    ],
)  # fmt: skip
def test_tools_are_read_from_every_spelling(given, kept):
    assert to_conversation({"messages": PAIR, "tools": given}).tools == kept


def test_parts_join_into_text_with_image_marks():
    parts = [
        {"type": "text", "text": "look ", "image": None},
        {"type": "image", "image": "a.png", "text": None},
        {"type": "image_url", "image_url": {"url": "http://b"}},
        {"type": "text", "text": " here"},
    ]
    found = to_conversation({"messages": [{"role": "user", "content": parts}, PAIR[1]]})
    assert found.messages[0].content == "look <image><image> here"
    assert found.images == ("a.png", "http://b")
    found = to_conversation({"messages": [{"role": "user", "content": [{"type": "image"}]}, PAIR[1]], "images": ["c"]})
    assert found.images == ("c",)


@pytest.mark.parametrize(
    ("cells", "images"),
    [
        ({"images": ["a", "b"]}, ("a", "b")),
        ({"images": "a"}, ("a",)),
        ({"image": "a"}, ("a",)),
        ({"image": {"path": "a", "bytes": None}}, ("a",)),
        ({"images": '["a"]'}, ("a",)),
        ({"images": None, "image": None}, ()),
        ({"images": []}, ()),
    ],
)
def test_images_are_read_from_every_column(cells, images):
    assert to_conversation({"query": "q", "response": "r", **cells}).images == images


BAD = [
    ({}, "every column is null"),
    ({"query": None}, "every column is null"),
    ({"foo": 1}, "its keys are 'foo'; expected query/response"),
    ({"anwser": "x"}, "found 'anwser'; did you mean 'answer'?"),
    ({"question": "q", "anwser": "x"}, "no answer: response, output, .*found 'anwser'; did you mean 'answer'?"),
    ({"qestion": "q", "answer": "x"}, "no question; found 'qestion'; did you mean 'question'?"),
    ({"query": "q", "response": None}, "no answer"),
    ({"instruction": "q", "input": "x"}, "no answer"),
    ({"query": ["q"], "response": "r"}, "message 1 is text, not an object"),
    ({"query": True, "response": "r"}, "column 'query' holds true or false, not text"),
    ({"instruction": {}, "input": "a", "output": "r"}, "column 'instruction' holds an object, not text"),
    ({"query": "q", "response": "r", "system": []}, "column 'system' holds a list"),
    ({"query": "q", "response": "r", "history": [["a"]]}, "entry 1 of 'history' is not a pair"),
    ({"query": "q", "response": "r", "history": [["a", None]]}, "entry 1 of 'history' is not a pair"),
    ({"query": "q", "response": "r", "history": "x y"}, "column 'history' is text that is not JSON: 'x y'"),
    ({"query": "q", "response": "r", "history": 3}, "column 'history' holds a number"),
    ({"query": "\ud800", "response": "r"}, "half of a surrogate pair"),
    ({"messages": []}, "empty list"),
    ({"messages": {}}, "not a list of messages"),
    ({"messages": "hello"}, "text that is not JSON"),
    ({"messages": [{"content": "q"}]}, "message 1 has no role; its keys are 'content'"),
    ({"messages": [{"role": "user", "text": "q"}]}, r"message 1 \(user\) has no content; its keys are 'role', 'text'"),
    ({"messages": [{"role": "usr", "content": "q"}]}, "unknown role 'usr'; did you mean 'user'?"),
    ({"messages": [{"role": 3, "content": "q"}]}, "unknown role 3"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "part of type 'video'"),
    ({"messages": [PAIR[0], {"role": "assistant", "content": None}]}, "message 2 .assistant. has no content"),
    ({"messages": [{"role": "user", "content": True}]}, "has true or false as content"),
    ({"messages": [PAIR[0], {**PAIR[1], "weight": -0.5}]}, "has weight -0.5; expected a number of at least 0"),
    ({"messages": [PAIR[0], {**PAIR[1], "loss_scale": math.inf}]}, "has loss_scale inf"),
    ({"messages": [PAIR[0], {**PAIR[1], "weight": "1"}]}, "has weight '1'"),
    ({"messages": [PAIR[0], {**PAIR[1], "weight": 2, "loss_scale": 3}]}, "different values for weight and loss_scale"),
    ({"messages": [PAIR[0], {**PAIR[1], "train": 0.5}]}, "has train 0.5; expected 0, 1, true or false"),
    ({"messages": [PAIR[0], {**PAIR[1], "trainable": "no"}]}, "has trainable 'no'"),
    ({"messages": PAIR[:1]}, "ends with a user message"),
    ({"messages": messages(("tool", "x"), ("assistant", "r"))}, "first turn is a tool message"),
    ({"messages": messages(("user", "q"), ("tool", "x"), ("assistant", "r"))}, "a tool message follows a user"),
    ({"messages": messages(("system", "a"))}, "no user or assistant message"),
    ({"messages": [{"role": "system", "content": "a"}, *PAIR], "system": "b"}, "system column and the system message"),
    (
        {"messages": messages(("user", "q"), ("function_call", "f(x)"))},
        "tool calls of message 2 .function_call. is text that is not JSON",
    ),
    ({"messages": messages(("user", "q"), ("function_call", "{}"))}, "a call has no name"),
    ({"messages": messages(("user", "q"), ("function_call", "[]"))}, "holds no call"),
    ({"messages": [{**PAIR[0], "tool_calls": [{"name": "f"}]}, PAIR[1]]}, "only an assistant message may"),
    (
        {"messages": [PAIR[0], {**PAIR[1], "weight": 0}, {"role": "tool_call", "content": CALL_JSON}]},
        "one assistant turn",
    ),
    ({"messages": PAIR, "tools": 3}, "tools holds a number"),
    ({"messages": PAIR, "tools": [3]}, "a tool is a number"),
    ({"messages": PAIR, "tools": "nothing"}, "tools is text that is not JSON"),
    ({"conversation": [{"assistant": "r"}]}, "entry 1 of 'conversation' has no 'human'"),
    ({"query": "q", "response": "r", "images": [{"bytes": b"x"}]}, "given as bytes"),
    ({"query": "q", "response": "r", "images": [3]}, "an image is a number"),
    ({"chosen": "a", "rejected": "b"}, "its keys|every column is null"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_refused_in_one_line(row, reason):
    with pytest.raises(RowError, match=reason) as caught:
        to_conversation(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [{"query": "q"}, {"query": "q", "response": None}, {"messages": PAIR[:1]}])
def test_inference_rows_need_no_response(row):
    assert to_conversation(row, need_answer=False) == Conversation((USER,))


def test_renaming_leaves_the_row_alone_and_hides_no_column():
    row = {"q": "1", "a": "2", "b": 3}
    assert rename_columns(row, {"q": "query", "a": "response", "zz": "x"}) == {"query": "1", "response": "2", "b": 3}
    assert row == {"q": "1", "a": "2", "b": 3}
    assert rename_columns({"a": 1, "b": 2}, {"a": "b", "b": "a"}) == {"b": 1, "a": 2}
    with pytest.raises(RowError, match="has a column 'b' already"):
        rename_columns(row, {"a": "b"})


SHOWN = {"system": "s", "tools": [], "images": [], "image": "1.png", "chat_template_kwargs": {}, "template_kwargs": {}}


@pytest.mark.parametrize("extra", SHOWN)
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"query": "a", "response": "b"}, ["query", "response"]),
        ({"messages": [{"role": "user", "content": "a"}]}, ["messages"]),
        ({"query": "a", "chosen": "b", "rejected": "c"}, ["query", "chosen"]),
        ({"text": "a"}, ["text"]),
        ({"response": "a"}, ["response"]),
    ],
)
def test_the_columns_that_a_row_is_read_from(row, columns, extra):
    """And no others: what stands in none of them is reported as not used."""
    assert list(recognise(row).columns) == columns
    known = {"template_kwargs": "chat_template_kwargs"}.get(extra, extra)
    assert list(recognise(row | {extra: SHOWN[extra], "id": 3}).columns) == [*columns, known]


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
def test_a_list_that_is_null_as_text_is_absent(key):
    """As CSV exports write it."""
    row = {key: "null", "query": "q", "response": "r"}
    assert recognise(row).columns == ("query", "response")
    assert to_conversation(row) == to_conversation({"query": "q", "response": "r"})
