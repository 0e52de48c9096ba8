"""Many clients at once against a running server: is every answer there, and is it the right one?

Each client asks one question after the other, now as a stream, now whole. The right answers are those that the server
gives to one client alone before the others come. What is measured is printed as one JSON object:

    llmtune serve --ckpt_dir ... --port 8000 &
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --clients 32 --seconds 60 --pid $!

With `--hostile 8`, eight of the clients are those of hostile_clients.py, in a process of their own, and the others are
measured twice, first without them; a p95 of more than twice that is a failure:

    python benchmarks/serve_load.py --clients 64 --hostile 8 --seconds 60

Needs `pip install openai`. With --pid, of the server on this machine (Linux), its memory is printed after a sixth of
the time and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import openai

QUESTIONS = 32


def requests_of(model: str) -> list[dict[str, object]]:
    """Questions and answers of several lengths; every second one is drawn by chance, with a seed of its own."""
    chosen = random.Random(0)
    words = ["one", "two", "three", "red", "sea", "sun", "who", "what", "where", "you", "name", "question"]
    found = []
    for number in range(QUESTIONS):
        text = f"question {number % 8}" if number % 4 < 2 else " ".join(chosen.choices(words, k=chosen.randint(1, 60)))
        drawn = {"temperature": 8.0, "seed": number} if number % 2 else {"temperature": 0}
        messages = [{"role": "user", "content": text}]
        found.append({"model": model, "messages": messages, "max_tokens": chosen.randint(4, 48), **drawn})
    return found


async def ask(client: openai.AsyncOpenAI, request: dict[str, object], *, stream: bool) -> str:
    if not stream:
        found = await client.chat.completions.create(**request)
        return found.choices[0].message.content
    pieces = []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
    return "".join(pieces)


def resident_mib(pid: int | None) -> float | None:
    if pid is None:
        return None
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def against_hostile(options: argparse.Namespace) -> dict[str, object]:
    """The honest clients alone, then beside hostile ones."""
    honest = argparse.Namespace(**vars(options) | {"clients": options.clients - options.hostile})
    alone = asyncio.run(load(honest))
    script = Path(__file__).with_name("hostile_clients.py")
    asked = ["--url", options.url, "--model", str(alone["model"]), "--clients", str(options.hostile)]
    command = [sys.executable, str(script), *asked, "--seconds", str(options.seconds + 5)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as hostile:
        time.sleep(3)  # their bodies have to be made
        beside = asyncio.run(load(honest, right=alone.pop("right")))
        hostile.wait(options.seconds + 120)
        answers = json.loads(hostile.stdout.read()) if hostile.stdout is not None else {}
    beside.pop("right")
    ratio = round(float(str(beside["p95_s"])) / float(str(alone["p95_s"])), 2)
    return {"p95_ratio": ratio, "hostile_answers": answers, "alone": alone, "beside": beside}


async def load(options: argparse.Namespace, right: object = None) -> dict[str, object]:
    """`right`: the answers, where they are known from before."""
    client = openai.AsyncOpenAI(
        base_url=f"{options.url}/v1", api_key=options.api_key, max_retries=0, timeout=options.seconds + 60
    )
    model = options.model or (await client.models.list()).data[0].id
    requests = requests_of(model)
    right = right or [await ask(client, request, stream=False) for request in requests]
    seconds: list[float] = []
    wrong: list[tuple[str, str]] = []
    failed: list[str] = []
    memory: list[float | None] = []
    started = time.monotonic()
    end = started + options.seconds

    async def one_client(number: int) -> None:
        chosen = random.Random(number)
        while time.monotonic() < end:
            place = chosen.randrange(QUESTIONS)
            begun = time.monotonic()
            try:
                answer = await ask(client, requests[place], stream=chosen.random() < 0.5)
            except openai.OpenAIError as err:
                failed.append(f"{type(err).__name__}: {err}")
                continue
            seconds.append(time.monotonic() - begun)
            if answer != right[place]:
                wrong.append((right[place], answer))

    async def watch() -> None:
        await asyncio.sleep(options.seconds / 6)
        memory.append(resident_mib(options.pid))

    await asyncio.gather(watch(), *(one_client(number) for number in range(options.clients)))
    memory.append(resident_mib(options.pid))
    seconds.sort()
    took = time.monotonic() - started
    return {
        "model": model,
        "right": right,
        "clients": options.clients,
        "seconds": round(took, 1),
        "requests": len(seconds),
        "requests_per_second": round(len(seconds) / took, 1),
        "p50_s": round(seconds[len(seconds) // 2], 3),
        "p95_s": round(seconds[len(seconds) * 95 // 100], 3),
        "failed": len(failed),
        "wrong": len(wrong),
        "different_answers": len(set(right)),
        "first_problems": [*failed[:3], *map(list, wrong[:3])],
        "memory_mib": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api_key", default="none")
    parser.add_argument("--model", help="Default: the first that the server names.")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--hostile", type=int, default=0, help="So many of the clients are hostile.")
    options = parser.parse_args()
    if options.hostile:
        found = against_hostile(options)
        print(json.dumps(found, ensure_ascii=False))
        sides = (found["alone"], found["beside"])
        return 1 if found["p95_ratio"] > 2 or any(side["failed"] or side["wrong"] for side in sides) else 0
    found = asyncio.run(load(options))
    found.pop("right")
    print(json.dumps(found, ensure_ascii=False))
    return 1 if found["failed"] or found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
