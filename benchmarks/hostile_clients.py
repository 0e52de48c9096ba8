"""Clients that try to stop a server for all others, for serve_load.py; standard library alone, a thread each.

    python benchmarks/hostile_clients.py --url http://127.0.0.1:8000 --model NAME --clients 8 --seconds 60

Each sends one kind of request after the other: prompts, tools and messages of megabytes, many long stop words, a form
at the highest temperature for as many answers as there may be, text that is none, and requests that never end. What
came back is printed as one JSON object, status -> how often; `gone` where the server closed the connection.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

MEGABYTES = 12 * 1024 * 1024
QUESTION = [{"role": "user", "content": "question 1"}]
CHAT = "/v1/chat/completions"
NUM_HALF_SENT = 20
PATIENCE_S = 60


def bodies(model: str) -> Iterator[tuple[str, bytes]]:
    """(path, body) of each kind."""
    good = {"model": model, "messages": QUESTION, "max_tokens": 48}
    nested: object = {}
    for _ in range(900):
        nested = {"a": nested}
    tool = {"type": "function", "function": {"name": "sky", "description": "x" * MEGABYTES}}
    long = "word " * (MEGABYTES // 5)
    kinds = [
        (CHAT, good | {"stop": [("ab" * 500)[:990] + str(number) for number in range(1000)]}),
        (CHAT, good | {"stop": [("ab" * 500)[:990] + str(number) for number in range(64)], "n": 8}),
        (CHAT, good | {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"model": model, "prompt": long}),
        ("/v1/completions", {"model": model, "prompt": [long[: MEGABYTES // 8]] * 8}),
        (CHAT, good | {"messages": [{"role": "user", "content": "x"}] * 250_001}),
        (CHAT, good | {"messages": QUESTION * 9999}),
        (CHAT, good | {"tools": [tool]}),
        (CHAT, good | {"tools": [{"type": "function", "function": {"name": "sky", "parameters": nested}}]}),
        (CHAT, good | {"response_format": {"type": "json_object"}, "n": 8, "temperature": 100, "max_tokens": 400}),
        (CHAT, good | {"logit_bias": {"0": -100, "2": -100}, "n": 8, "max_tokens": 1900}),
        (CHAT, good | {"messages": [{"role": "user", "content": "\ud800"}]}),
    ]
    return ((path, json.dumps(body).encode()) for path, body in kinds)


class Hostile:
    """One client."""

    def __init__(self, url: str, made: list[tuple[str, bytes]], start: int) -> None:
        place = urlsplit(url)
        self.host, self.port = str(place.hostname), int(place.port or 80)
        self.made = made
        self.place = start
        self.told: Counter[str] = Counter()

    def run(self, end: float) -> None:
        while time.monotonic() < end:
            self.place += 1
            if self.place % (len(self.made) + 1) == 0:
                self._half_sent(end)
                continue
            path, body = self.made[self.place % (len(self.made) + 1) - 1]
            self.told[self._ask(path, body)] += 1

    def _ask(self, path: str, body: bytes) -> str:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return str(connection.getresponse().status)
        except OSError:
            return "gone"
        finally:
            connection.close()

    def _half_sent(self, end: float) -> None:
        """Heads and bodies that stop in the middle; they are left open while the next requests run."""
        left = []
        for number in range(NUM_HALF_SENT):
            text = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
            try:
                one = socket.create_connection((self.host, self.port), timeout=5)
                one.sendall(text if number % 2 else text + b'\r\n{"model": ')
            except OSError:
                self.told["gone"] += 1
                continue
            left.append(one)
        threading.Timer(min(10.0, max(end - time.monotonic(), 0)), lambda: [one.close() for one in left]).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    made = list(bodies(options.model))
    clients = [Hostile(options.url, made, number * 2) for number in range(options.clients)]
    end = time.monotonic() + options.seconds
    threads = [threading.Thread(target=one.run, args=(end,), daemon=True) for one in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S + options.seconds)
    print(json.dumps(sum((one.told for one in clients), Counter())))


if __name__ == "__main__":
    main()
