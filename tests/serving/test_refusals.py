"""What a server refuses, in the API's own shape; what it does when clients leave and when it is told to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest

from llmtune.arguments.service import ServeArguments
from llmtune.errors import UsageError

from ..waiting import SECONDS, until

ENDLESS = {"2": -100.0, "0": -100.0}
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "question 3"}]
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
GOOD = {"model": "llmtune-tiny", "messages": QUESTION}
LONG = GOOD | {"logit_bias": ENDLESS, "max_tokens": 1900}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, 400, "messages"),
        ({"messages": [*QUESTION, *QUESTION]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "messages"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"n": 9}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"max_tokens": 5000}, 400, "max_tokens"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"messages": [{"role": "user", "content": "a b " * 3000}]}, 400, "messages"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.type"),
        ({"unheard_of": 1}, 400, "unheard_of"),
        ({"tool_choice": "required"}, 400, "tools"),
    ],
)  # fmt: skip
def test_a_bad_request_names_its_parameter(server, change, status, param):
    body = json.dumps(GOOD | change)
    found = httpx.post(server.url + CHAT, content=body, headers={"Content-Type": "application/json"})
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert param is None or error["param"] == param


def test_what_is_no_request_at_all(server):
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"):
        found = httpx.post(server.url + CHAT, content=body, headers={"Content-Type": "application/json"})
        assert found.status_code == 400, body[:20]
        assert "message" in found.json()["error"]
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405)):
        found = httpx.request(method, server.url + path)
        assert (found.status_code, set(found.json()["error"])) == (status, {"message", "type", "param", "code"})


def test_a_body_that_is_too_large_is_not_read(serving, tuned):
    with serving(ckpt_dir=str(tuned), max_body_size=2000) as server:
        found = httpx.post(server.url + CHAT, json=GOOD | {"user": "x" * 3000})
        assert (found.status_code, found.json()["error"]["code"]) == (413, "body_too_large")

        def endless():
            for _ in range(10):
                yield b"x" * 1000

        found = httpx.post(server.url + CHAT, content=endless(), headers={"Content-Type": "application/json"})
        assert found.status_code == 413
        assert httpx.post(server.url + CHAT, json=GOOD).status_code == 200


def test_requests_need_the_key(serving, tuned, monkeypatch):
    with serving(ckpt_dir=str(tuned), api_key="s3cret", max_prompt_length=5) as server:
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client("wrong").models.list()
        assert caught.value.body["code"] == "invalid_api_key"
        assert [model.id for model in server.client("s3cret").models.list()] == ["llmtune-tiny"]
        assert httpx.get(server.url + "/health").json() == {"status": "ok"}
        assert httpx.get(server.url + "/metrics").status_code == 401
        with pytest.raises(openai.BadRequestError, match="allows 5"):
            server.client("s3cret").chat.completions.create(**GOOD)


def test_others_are_let_in_with_a_key_alone(monkeypatch):
    with pytest.raises(UsageError, match="LLMTUNE_API_KEY"):
        ServeArguments(model_type="llmtune-tiny", host="0.0.0.0")
    with pytest.raises(UsageError, match="LLMTUNE_API_KEY"):
        ServeArguments(model_type="llmtune-tiny", host="::")
    monkeypatch.setenv("LLMTUNE_API_KEY", "s3cret")
    assert ServeArguments(model_type="llmtune-tiny", host="0.0.0.0").api_key == "s3cret"
    monkeypatch.setenv("LLMTUNE_API_KEY", "")
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        ServeArguments(model_type="llmtune-tiny", host=host)


def test_a_full_queue_and_clients_that_leave(serving, tuned):
    """One place to write and two to wait: the fourth is refused, and each that leaves makes room for another."""
    with serving(ckpt_dir=str(tuned), max_batch_size=1, max_queue=2, max_n=3) as server:
        batcher, client = server.service.batcher, server.client()
        first = client.chat.completions.create(**LONG, stream=True)
        next(iter(first))
        waiting = []
        for number in (1, 2):
            one = httpx.Client(timeout=SECONDS)
            thread = threading.Thread(target=_post_until_closed, args=(one, server.url + CHAT), daemon=True)
            thread.start()
            waiting.append((one, thread))
            until(lambda number=number: batcher.num_waiting == number)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**GOOD)
        assert caught.value.response.headers["Retry-After"]
        assert caught.value.body["code"] == "queue_full"
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**GOOD, n=3)
        first.close()  # a stream, being written: the next one moves up
        until(lambda: batcher.num_waiting == 1)
        streams = client.chat.completions.create(**LONG, stream=True)  # there is room again
        until(lambda: batcher.num_waiting == 2)
        streams.close()  # one that waits
        until(lambda: batcher.num_waiting == 1)
        for one, thread in waiting:  # plain requests, one written and one waiting
            _hang_up(one)
            thread.join(SECONDS)
        until(lambda: batcher.num_running + batcher.num_waiting == 0)
        assert client.chat.completions.create(**GOOD).choices[0].message.content == "answer 3!"
        told = httpx.get(server.url + "/metrics").text
        assert "llmtune_cancelled_total 4.0" in told
        assert 'llmtune_requests_total{path="/v1/chat/completions",status="429"} 2.0' in told


def _post_until_closed(client: httpx.Client, url: str) -> None:
    try:
        client.post(url, json=LONG)
    except (httpx.HTTPError, RuntimeError, OSError):
        return


def _hang_up(client: httpx.Client) -> None:
    for connection in client._transport._pool.connections:
        raw = connection._connection._network_stream.get_extra_info("socket")
        raw.shutdown(socket.SHUT_RDWR)


def test_a_request_that_takes_too_long(serving, tuned):
    with serving(ckpt_dir=str(tuned), request_timeout=0.3) as server:
        found = httpx.post(server.url + CHAT, json=LONG, timeout=SECONDS)
        assert (found.status_code, found.json()["error"]["code"]) == (504, "timeout")
        until(lambda: server.service.is_idle)


def test_metrics_count_requests_and_tokens(server, client):
    client.chat.completions.create(**GOOD)
    told = httpx.get(server.url + "/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in ("requests_total", "request_seconds_bucket", "first_token_seconds_count", "prompt_tokens_total",
                 "generated_tokens_total", "answers_total", "running", "waiting"):  # fmt: skip
        assert f"\nllmtune_{name}" in told.text


@pytest.mark.slow
def test_shutdown_finishes_running_requests(tuned):
    command = [sys.executable, "-m", "llmtune", "serve", "--ckpt_dir", str(tuned), "--port", "0"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert child.stderr is not None
    try:
        url = next(line.split(" at ")[1].split("/v1")[0] for line in child.stderr if line.startswith("Serving "))
        threading.Thread(target=child.stderr.read, daemon=True).start()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        until(lambda: _answers(url))
        stream = iter(client.chat.completions.create(**LONG, stream=True))
        next(stream)
        child.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/health").status_code == 503)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**GOOD)
        assert (caught.value.status_code, caught.value.body["code"]) == (503, "shutting_down")
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length", "it was cut off"
        assert child.wait(SECONDS) == 0
    finally:
        child.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_port_that_is_taken(serving, tuned, server):
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UsageError, match="Give another --port"), serving(ckpt_dir=str(tuned), port=port):
        pass


def test_no_model_is_named():
    """Not the documented default of infer: nobody serves 15 GB by accident."""
    with pytest.raises(UsageError, match="No model given"):
        ServeArguments()
