"""All that only a GPU can show, in parts of a bounded time each: speed, memory, kernels, exactness.

    python benchmarks/gpu/acceptance.py                            on a GPU: under 8 minutes
    python benchmarks/gpu/acceptance.py --parts lora full          some parts; those that are in --out are not repeated
    python benchmarks/gpu/acceptance.py --shape tiny --device cpu --one_process   the script itself, on any machine

Nothing is downloaded: weights are random, made on the device and kept below --scratch (15 GB in bf16). Each part runs
in a process of its own, and is stopped when its time is over. What is found is written to --out after each part, so
that a call on another machine goes on with the parts that are missing; a table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from parts import PARTS
from timed import SHAPES, make_inputs

from llmtune.errors import MissingPackageError, UsageError

BUDGET = 470
"""Seconds after which no part is begun."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--steps", type=int, default=9, help="of each run, three of them not timed")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no part is begun")
    parser.add_argument("--out", type=Path, default=Path("acceptance.json"))
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/llmtune-acceptance"))
    parser.add_argument("--one_process", action="store_true", help="all parts in this one, without time limits")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.scratch = options.scratch.resolve()
    if options.part:
        print("\nRESULT " + json.dumps(attempt(options, options.part)), flush=True)
        return 0
    found = run_all(options)
    print(table(found))
    return 0 if all(one.get("ok", True) for one in found.values()) else 1


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.parts:
        if found.get(name, {}).get("ok"):
            continue
        if time.perf_counter() - began > options.budget:
            found.setdefault(name, {"skipped": "no time was left"})
            continue
        start = time.perf_counter()
        one = attempt(options, name) if options.one_process else in_process(options, name)
        found[name] = {"took": round(time.perf_counter() - start, 1), **one}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {outcome(found[name])}, {found[name]['took']} s", file=sys.stderr, flush=True)
    return found


def in_process(options: argparse.Namespace, name: str) -> dict[str, Any]:
    seconds = PARTS[name][1]
    command = [sys.executable, __file__, f"--part={name}", f"--scratch={options.scratch}", f"--shape={options.shape}"]
    command += [
        f"--out={options.out}",
        f"--device={options.device}",
        f"--steps={options.steps}",
        f"--rows={options.rows}",
    ]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=os.environ | hidden)
    except subprocess.TimeoutExpired:
        return {"ok": False, "failed": f"not done after {seconds} s"}
    if "RESULT " in done.stdout:
        return dict(json.loads(done.stdout.rsplit("RESULT ", 1)[1]))
    return {"ok": False, "failed": (done.stderr.strip() or "no message")[-1500:]}


def attempt(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run a part here; what it raises is its result."""
    try:
        if name not in ("doctor", "embedded", "attention", "process group"):
            make_inputs(options.scratch, options.shape, options.device, options.rows)
        options.scratch.mkdir(parents=True, exist_ok=True)
        return dict(PARTS[name][0](options))
    except (UsageError, MissingPackageError) as err:
        return {"skipped": str(err)}
    except Exception as err:  # a part that fails must not hide the others
        return {"ok": False, "failed": f"{type(err).__name__}: {err}"[:1500], "where": traceback.format_exc()[-1500:]}


def outcome(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"left out: {found['skipped']}"
    return "ok" if found["ok"] else f"not ok {found.get('failed', '')}".strip()


def table(found: dict[str, Any]) -> str:
    lines = ["| part | | tokens/s | MFU | peak GiB | plan GiB | loss | more |", "|---|---|---|---|---|---|---|---|"]
    for name, (_, _, meaning) in PARTS.items():
        one = found.get(name)
        if one is None:
            continue
        losses = one.get("losses") or []
        cells = [
            f"{one['tokens/s']:,.0f}" if "tokens/s" in one else "",
            f"{one['mfu']:.1%}" if one.get("mfu") else "",
            f"{one['peak'] / 2**30:.2f}" if "peak" in one else "",
            f"{one['plan'] / 2**30:.2f}" if "plan" in one else "",
            f"{losses[0]:.4f} to {losses[-1]:.4f}" if losses else "",
            more(one),
        ]
        lines.append(f"| {name}: {meaning} | {outcome(one).splitlines()[0][:120]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def more(found: dict[str, Any]) -> str:
    """What a part found beside the columns."""
    shown = [f"{value:.2f} {key}" for key, value in found.items() if key in ("times as fast", "apart", "losses apart")]
    shown += [f"{key}: {value:,.0f} tokens/s" for key, value in found.items() if key.endswith("clients")]
    shown += [f"{key.removesuffix('_seconds')} {value:.2f} s" for key, value in found.get("seconds", {}).items()]
    shown += ["goal missed"] if found.get("reached") is False else []
    return ", ".join(shown)


if __name__ == "__main__":
    sys.exit(main())
