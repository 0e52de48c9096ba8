"""One process that answers `check`, `plan` and `--dry_run` again and again, so that torch is imported once.

    python -m llmtune.cli.warm
    {"id": 1, "command": "plan", "stage": "sft", "argv": ["--model_type", "llmtune-tiny"]}
    {"id": 1, "facts": {...}}            or {"id": 1, "error": "...", "exit_status": 2}

One JSON object per line, in and out; log lines go to standard error. It ends with its input, or when idle.
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from llmtune.arguments.checks import check_sources
from llmtune.arguments.parser import parse
from llmtune.arguments.stages import stage_arguments
from llmtune.cli.check import CheckFlags
from llmtune.cli.check_facts import check_data
from llmtune.cli.dry_run import show_stage
from llmtune.cli.plan import PlanFlags, planned
from llmtune.cli.stages import add_flags, command_arguments
from llmtune.errors import LlmtuneError, UsageError, one_line

IDLE_SECONDS = 600.0


def _check(stage: str, argv: list[str]) -> dict[str, Any]:
    args: Any = parse(add_flags(CheckFlags, stage_arguments(stage)), argv, command="check")
    return check_data(args, args.rows).to_json()


def _plan(stage: str, argv: list[str]) -> dict[str, Any]:
    return planned(parse(add_flags(PlanFlags, stage_arguments(stage)), argv, command="plan")).to_json()


def _dry_run(stage: str, argv: list[str]) -> dict[str, Any]:
    args: Any = parse(command_arguments(stage), [*argv, "--dry_run", "true", "--json", "true"], command=stage)
    check_sources(args)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show_stage(args)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


COMMANDS: dict[str, Callable[[str, list[str]], dict[str, Any]]] = {
    "check": _check,
    "plan": _plan,
    "dry_run": _dry_run,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request."""
    try:
        if request.get("command") not in COMMANDS:
            raise UsageError(f"command is one of {', '.join(COMMANDS)}.")
        with contextlib.redirect_stdout(sys.stderr):
            facts = COMMANDS[request["command"]](request.get("stage", "sft"), list(request.get("argv", [])))
        return {"id": request.get("id"), "facts": facts}
    except LlmtuneError as err:
        return {"id": request.get("id"), "error": str(err), "exit_status": err.exit_status}
    except (Exception, SystemExit) as err:  # one bad request must not end the process of all
        return {"id": request.get("id"), "error": f"{type(err).__name__}: {one_line(err)}", "exit_status": 1}


def _requests(stream: TextIO) -> Iterator[dict[str, Any]]:
    """The requests of a stream, until it ends or nothing has come for a while."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while line := lines.get(timeout=IDLE_SECONDS):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield found


def main() -> None:
    """Answer until the input ends."""
    import llmtune.planning.plan
    import llmtune.samples.prepare  # noqa: F401, the imports that take seconds, before the first request

    out = sys.stdout
    out.write(json.dumps({"ready": True}) + "\n")
    out.flush()
    for request in _requests(sys.stdin):
        out.write(json.dumps(answer(request), ensure_ascii=False, default=str) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
