"""What one client may ask of a server: no request is an error of the server, each is bounded before it is worked on."""

from __future__ import annotations

import base64
import io
import json
import socket
import time

import httpx
import pytest
from PIL import Image

from llmtune.inference.texts import StopAutomaton
from llmtune.serving import limits as patience
from llmtune.serving.protocol import ApiError
from llmtune.serving.wire import Pictures, is_deeper

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "question 3"}]
GOOD = {"model": "llmtune-tiny", "messages": QUESTION, "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "sky", "description": "Of a place.", "parameters": {"type": "object"}}}


def deep(times: int):
    value: dict = {}
    for _ in range(times):
        value = {"a": value}
    return value


def tool(**changes):
    return {"tools": [{"type": "function", "function": TOOL["function"] | changes}]}


def post(server, change, path=CHAT):
    body = json.dumps((GOOD if path == CHAT else {"model": "llmtune-tiny", "max_tokens": 2}) | change)
    return httpx.post(server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60)


REFUSED = [
    # change, param, words of the message
    ({"stop": ["x" * 1000] * 65}, "stop", "64"),
    ({"stop": ["x" * 1001]}, "stop.0", "1000"),
    ({"stop": "x" * 1001}, "stop", "1000"),
    ({"messages": QUESTION * 10_001}, "messages", "more than 682"),
    ({"messages": [{"role": "user", "content": "a b " * 200_000}]}, "messages", "characters"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a b " * 200_000}]}]}, "messages", "charac"),
    (tool(description="x" * 800_000), "messages", "characters"),
    ({"tools": [TOOL] * 513}, "tools", "512"),
    (tool(parameters=deep(100)), "tools.0.function.parameters", "more than 64 levels deep"),
    (tool(parameters=deep(900)), None, "nested too deeply"),
    ({"chat_template_kwargs": deep(100)}, "chat_template_kwargs", "levels deep"),
    ({"messages": [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "sky", "arguments": deep(100)}}]}, {"role": "tool", "content": "x"}]},
     "messages.1.tool_calls", "levels deep"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "surrogate"),
    (tool(description="\udfff"), None, "surrogate"),
    ({"user": "\ud83d"}, None, "surrogate"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]}, "messages.0.content.0.txt", "field"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "string"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0.type", "'text'"),
    ({"messages": [{"role": "user", "content": [{"type": "input_text"}]}]}, "messages", "has no text"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", "required"),
    ({"top_k": -2}, "top_k", "-1"),
    ({"functions": [1]}, "functions", "unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param", "words"), REFUSED)
def test_refusals_say_what_is_wrong(server, change, param, words):
    found = post(server, change)
    assert found.status_code == 400, found.text
    assert words in found.json()["error"]["message"]
    assert found.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": "\ud800"}, None),
        ({"prompt": "a b " * 200_000}, "prompt"),
        ({"prompt": ["a b " * 20_000] * 8}, "prompt"),
        ({"prompt": ["x"] * 9}, "prompt"),
        ({"prompt": "x", "best_of": 0}, "best_of"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "top_k": -2}, "top_k"),
    ],
)
def test_oversized_completions_are_refused(server, change, param):
    found = post(server, change, "/v1/completions")
    assert found.status_code == 400, found.text
    assert found.json()["error"]["param"] == param


@pytest.mark.parametrize("change", [{"best_of": 1}, {"top_k": -1}, {"top_k": 0}])
def test_the_bounds_themselves_are_taken(server, change):
    assert post(server, {"prompt": "x"} | change, "/v1/completions").status_code == 200


NULLS = [
    "functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort", "verbosity", "tools",
    "web_search_options", "stop", "n", "top_k", "stream", "stream_options", "tool_choice", "logit_bias", "metadata",
    "response_format", "chat_template_kwargs", "guided_json", "any_other",
]  # fmt: skip


def test_a_null_asks_for_nothing(server):
    question = QUESTION[0] | dict.fromkeys(["name", "function_call", "tool_calls", "refusal", "audio", "other"])
    parts = {"type": "text", "text": "question 3", "image_url": None, "annotations": None, "other": None}
    for change in (
        dict.fromkeys(NULLS),
        {"messages": [question]},
        {"messages": [{"role": "user", "content": [parts]}]},
        {"stream_options": {"include_usage": None, "other": None}, "stream": None},
        tool(strict=None, parameters=None, description=None, other=None),
        tool(parameters={"type": "object", "default": None}),
    ):
        assert post(server, change).status_code == 200, change


def test_fields_and_parts_of_other_clients_are_taken(server):
    text = post(server, {}).json()["choices"][0]["message"]["content"]
    marked = {"cache_control": {"type": "ephemeral"}}
    for content in (
        [{"type": "text", "text": "question 3"} | marked],
        [{"type": "input_text", "text": "question"}, {"type": "text", "text": " 3"}],
    ):
        found = post(server, {"messages": [{"role": "user", "content": content} | marked]})
        assert found.json()["choices"][0]["message"]["content"] == text
    assert post(server, {"tools": [TOOL | marked]}).status_code in (200, 400)


def test_stop_words_cost_the_same_whatever_their_number():
    text = "abcabcabd" * 2000

    def seconds(words):
        automaton, state = StopAutomaton(words), 0
        started = time.process_time()
        for character in text:
            state = automaton.step(state, character)
        return time.process_time() - started

    many = [f"{'abcabcabd' * 100}{number}" for number in range(64)]
    assert min(seconds(many) for _ in range(3)) < 10 * min(seconds(["xyz"]) for _ in range(3))


def test_depth_is_counted_without_recursion():
    assert not is_deeper({"a": [1, {"b": None}]}, 3)
    assert is_deeper({"a": [1, {"b": [2]}]}, 3)
    assert is_deeper(deep(50_000))
    assert not is_deeper([1] * 1000)
    assert not is_deeper(None)


# Connections


def half_sent(server, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":")[-1])))
    connection.sendall(data)
    connection.settimeout(20)
    return connection


@pytest.mark.medium
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HT",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{ \r\n",
    ],
    ids=["nothing", "half a head", "half a second head", "half a body", "half of chunks"],
)
def test_half_sent_requests_are_closed(server, monkeypatch, data):
    monkeypatch.setattr(patience, "READ_TIMEOUT_S", 0.3)
    with half_sent(server, data) as connection:
        told = b""
        while piece := connection.recv(4096):
            told += piece
            if b"408" in told:
                break
    assert not data.startswith(b"POST") or b"{" not in data or b"408 " in told.split(b"\r\n")[0]
    assert post(server, {}).status_code == 200


@pytest.mark.medium
def test_an_answer_may_take_longer_than_a_head(server, monkeypatch):
    monkeypatch.setattr(patience, "READ_TIMEOUT_S", 0.05)
    found = post(server, {"max_tokens": 300, "logit_bias": {"2": -100.0, "0": -100.0}})
    assert found.json()["usage"]["completion_tokens"] == 300


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:8000", 200), ("LOCALHOST:1", 200), ("evil.example", 403),
     ("localhost.evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("192.168.0.7", 403)],
)  # fmt: skip
def test_a_keyless_server_answers_to_this_machine_alone(server, host, status):
    for path in ("/v1/models", "/openapi.json", "/metrics"):
        assert httpx.get(server.url + path, headers={"Host": host}).status_code == status
    assert httpx.post(server.url + CHAT, json=GOOD, headers={"Host": host}).status_code == status
    assert httpx.get(server.url + "/health", headers={"Host": host}).status_code == 200


# Images


def data_url(data: bytes, declared: str) -> str:
    return f"data:image/{declared};base64,{base64.b64encode(data).decode()}"


def image(kind: str, size=(4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB" if kind != "GIF" else "P", size).save(file, kind)
    return file.getvalue()


@pytest.mark.medium
def test_images_are_opened_as_what_they_are_declared():
    pictures = Pictures()
    for kind in ("png", "jpeg", "webp", "gif", "bmp"):
        pictures.add(data_url(image(kind.upper()), kind))
    assert len(pictures.paths) == 5
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for data, declared in ((eps, "png"), (eps, "eps"), (image("BMP"), "png"), (image("PNG")[:20], "png"), (b"", "png"),
                           (image("PNG"), "svg+xml"), (image("TIFF"), "tiff")):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            pictures.add(data_url(data, declared))
        assert caught.value.status == 400
    with pytest.raises(ApiError, match="pixels"):
        pictures.add(data_url(image("PNG", (8000, 8000)), "png"))
