"""Calls of functions: read from texts, streamed, asked for, and written by a model that learned one."""

from __future__ import annotations

import dataclasses
import json
from itertools import accumulate

import openai
import pytest

from llmtune.errors import TemplateError
from llmtune.serving.protocol import ApiError, ChatRequest
from llmtune.serving.tool_calls import AnswerText, asked_call, call_asked_by
from llmtune.templates.lookup import get_template
from llmtune.templates.tools import TOOL_FORMAT_MAPPING, tool_format_of
from llmtune.types import ToolCall

from .conftest import TOOLS, WEATHER

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def hermes(tmp_path_factory):
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    return tool_format_of(get_template("qwen2.5", AutoTokenizer.from_pretrained(tiny_folder())))


def told(text: AnswerText, answer: str, size: int) -> str:
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
    return "".join([*map(text.add, pieces), text.finish()])


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_text_and_calls_of_a_streamed_response_are_separated(hermes, size):
    for answer, content, names in (
        ("No call at all, 3 < 4.", "No call at all, 3 < 4.", []),
        (CALL, "", ["get_weather"]),
        (f"Let me look.\n{CALL}\n{CALL}", "Let me look.", ["get_weather"] * 2),
        ("It is <tool_call>not JSON</tool_call>.", "It is <tool_call>not JSON</tool_call>.", []),
        ("It ends in <tool", "It ends in <tool", []),
    ):
        text = AnswerText(hermes)
        assert told(text, answer, size).strip() == content
        assert [call.name for call in text.calls] == names
    one = AnswerText(hermes, parallel=False)
    told(one, f"{CALL}\n{CALL}", size)
    assert one.calls == (ToolCall("get_weather", {"city": "Paris"}),)


def test_no_part_of_a_call_is_streamed_before_it_is_complete(hermes):
    text = AnswerText(hermes)
    seen = list(accumulate(text.add(character) for character in f"Look: {CALL}"))
    assert seen[-1] == "Look: "
    assert text.finish() == ""


def test_a_call_that_was_asked_for(hermes):
    asked = asked_call(hermes, ["get_weather", "get_time"])
    heads = {f'<tool_call>\n{{"name": "{name}", "arguments": ': name for name in ("get_weather", "get_time")}
    assert (asked.heads, asked.tail) == (heads, "}\n</tool_call>")
    for end in ("", "}", "}\n<"):
        text = AnswerText(hermes, asked)
        assert told(text, f'<tool_call>\n{{"name": "get_time", "arguments": {{"zone": "CET"}}{end}', 5) == ""
        assert text.calls == (ToolCall("get_time", '{"zone": "CET"}'),)
    assert asked.constraint().after(CALL[: CALL.rindex("}")]).is_complete
    assert asked.constraint().after(CALL.replace("}}", "} }")[: CALL.rindex("}") + 2]) is None


def test_a_function_that_a_format_cannot_write_is_not_asked_for_and_the_others_are(hermes):
    def write_calls(content, calls, at):
        if calls[0].name == "two words":
            raise TemplateError("no blanks in names")
        return hermes.write_calls(content, calls, at)

    asked = asked_call(dataclasses.replace(hermes, write_calls=write_calls), ["one", "two words", "three"])
    assert list(asked.heads.values()) == ["one", "three"]


@pytest.mark.parametrize("name", list(TOOL_FORMAT_MAPPING))
def test_a_call_cut_by_max_tokens_is_content(name):
    """However far it has come: all that was written is told, and no call is made of it."""
    fmt = TOOL_FORMAT_MAPPING[name]
    asked = asked_call(fmt, ["one", "two"])
    head = next(head for head, function in asked.heads.items() if function == "two")
    written = f'{head}{{"x": [1, 2]'
    for end in range(len(written) + 1):
        text = AnswerText(fmt, asked)
        assert told(text, written[:end], 3) == written[:end]
        assert text.calls == ()
    other = AnswerText(fmt, asked)
    assert told(other, "no call", 3) == "no call"
    assert other.calls == ()


@pytest.mark.parametrize("name", list(TOOL_FORMAT_MAPPING))
def test_every_format_can_be_asked_for_a_call(name):
    """What is held to the form of a family is a call to that family's own reader."""
    fmt = TOOL_FORMAT_MAPPING[name]
    asked = asked_call(fmt, ["one", "two"])
    assert sorted(asked.heads.values()) == ["one", "two"]
    head = next(head for head, function in asked.heads.items() if function == "two")
    written = f'{head}{{"x": [1, 2]}}{asked.tail}'
    assert [(call.name, call.arguments) for call in fmt.parse(written).calls] == [("two", {"x": [1, 2]})]
    text = AnswerText(fmt, asked)
    told(text, f'{head}{{"x": [1, 2]}}', 4)
    assert text.calls == (ToolCall("two", '{"x": [1, 2]}'),)


def request(**fields):
    return ChatRequest(model="m", messages=[{"role": "user", "content": "a"}], **fields)


def test_impossible_tool_choices_are_refused(hermes):
    named = {"type": "function", "function": {"name": "calculate"}}
    names = [tool["function"]["name"] for tool in TOOLS]
    for choice, expected in ((None, None), ("none", None), ("auto", None), ("required", names), (named, ["calculate"])):
        asked = call_asked_by(request(tools=TOOLS, tool_choice=choice), hermes)
        assert (asked and list(asked.heads.values())) == expected
    unwritable = dataclasses.replace(hermes, write_calls=lambda content, calls, at: [])
    for fields, fmt, text in (
        ({"tools": TOOLS, "tool_choice": named | {"function": {"name": "other"}}}, hermes, "not in tools"),
        ({"tool_choice": "required"}, None, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": "required"}, None, "no tool format"),
        ({"tools": TOOLS, "tool_choice": "required"}, unwritable, "no tool format"),
    ):
        with pytest.raises(ApiError, match=text):
            call_asked_by(request(**fields), fmt)


@pytest.fixture(scope="module")
def server(serving, tuned):
    with serving(ckpt_dir=str(tuned), template_type="qwen2.5") as found:
        yield found


@pytest.fixture
def written(server, monkeypatch):
    """`written(text)`: what the model writes from now on, token by token."""

    def write(text: str) -> None:
        def advance(rows, *, adapter=None, until=None):
            for row in rows:
                for token in server.service.engine.tokenizer(text, add_special_tokens=False)["input_ids"]:
                    if row.add(token):
                        break
                row.finish("stop")

        monkeypatch.setattr(server.service.engine, "advance", advance)

    return write


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "options", "content", "cities", "reason"),
    [
        ("It is warm.", {}, "It is warm.", [], "stop"),
        (CALL, {}, "", ["Paris"], "tool_calls"),
        (f"Let me look.\n{CALL}\n{CALL.replace('Paris', 'Rome')}", {}, "Let me look.", ["Paris", "Rome"], "tool_calls"),
        (f"{CALL}\n{CALL}", {"parallel_tool_calls": False}, "", ["Paris"], "tool_calls"),
        ("It is very warm.", {"max_tokens": 2}, None, [], "length"),
    ],
)
def test_calls_over_the_api(server, written, stream, text, options, content, cities, reason):
    written(text)
    asked = {"model": "llmtune-tiny", "messages": [{"role": "user", "content": "weather?"}], "tools": TOOLS}
    asked |= {"max_tokens": 400} | options
    found = server.client().chat.completions.create(**asked, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in found]
        calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
        assert [call.index for call in calls] == list(range(len(calls)))
        told = "".join(choice.delta.content or "" for choice in choices)
        reasons = [choice.finish_reason for choice in choices]
        assert reasons[:-1] == [None] * (len(choices) - 1)
    else:
        calls = found.choices[0].message.tool_calls or []
        told, reasons = found.choices[0].message.content or "", [found.choices[0].finish_reason]
    assert reasons[-1] == reason
    assert [(call.type, call.function.name) for call in calls] == [("function", "get_weather")] * len(cities)
    assert [json.loads(call.function.arguments)["city"] for call in calls] == cities
    assert len({call.id for call in calls}) == len(calls)
    if content is not None:
        assert told.strip() == content


@pytest.fixture
def client(tool_client: openai.OpenAI) -> openai.OpenAI:
    return tool_client


def ask(client: openai.OpenAI, city: str, messages=(), **options):
    asked = [{"role": "user", "content": f"weather in {city}"}, *messages]
    settings = {"model": "llmtune-tiny", "messages": asked, "tools": TOOLS} | options
    return client.chat.completions.create(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_cut_by_max_tokens_over_the_api(client, stream):
    found = ask(client, "Paris", tool_choice="required", max_tokens=4, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in found]
        content, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
        calls = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    else:
        message, reason = found.choices[0].message, found.choices[0].finish_reason
        content, calls = message.content, message.tool_calls
    assert content
    assert not calls
    assert reason == "length"


@pytest.mark.slow
def test_a_call_and_the_response_after_it(client):
    for city, weather in WEATHER:
        choice = ask(client, city).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        assert json.loads(call.function.arguments) == {"city": city}
        turns = [
            {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": weather},
        ]
        last = ask(client, city, turns).choices[0]
        assert (last.message.content, last.finish_reason) == (f"{city}: {weather}", "stop")


@pytest.mark.slow
def test_a_streamed_call_arrives_whole(client):
    chunks = [chunk.choices[0] for chunk in ask(client, "Rome", stream=True)]
    (call,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "get_weather", {"city": "Rome"})
    assert "".join(chunk.delta.content or "" for chunk in chunks).strip() == ""
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.slow
def test_tool_choice_forces_a_call(client):
    named = ask(client, "Paris", tool_choice={"type": "function", "function": {"name": "calculate"}}, max_tokens=200)
    if named.choices[0].finish_reason == "tool_calls":  # not where its arguments do not end within max_tokens
        assert [call.function.name for call in named.choices[0].message.tool_calls] == ["calculate"]
        assert isinstance(json.loads(named.choices[0].message.tool_calls[0].function.arguments), dict)
    required = ask(client, "Paris", tool_choice="required").choices[0]
    assert json.loads(required.message.tool_calls[0].function.arguments) == {"city": "Paris"}
    none = ask(client, "Paris", tool_choice="none").choices[0]
    assert none.message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="not in tools"):
        ask(client, "Paris", tool_choice={"type": "function", "function": {"name": "get_rich"}})
    with pytest.raises(openai.BadRequestError, match="mutually exclusive"):
        ask(client, "Paris", response_format={"type": "json_object"})
