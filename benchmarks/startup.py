"""What starting costs: help, and a whole 5-step LoRA job against merely importing what it stands on.

    python benchmarks/startup.py [--repeats 5]

Each command runs as a process of its own, in turn (A B A B ...), after one warm-up that fills the caches. Compared are
CPU-seconds of the process and its children: they stay the same on a busy machine, where wall time does not.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

LIMIT = 1.6
COMMANDS = {
    "llmtune --help": ["-m", "llmtune", "--help"],
    "llmtune sft --help": ["-m", "llmtune", "sft", "--help"],
    "llmtune list models": ["-m", "llmtune", "list", "models"],
    "import torch, peft, Trainer": ["-c", "import torch, peft; from transformers import Trainer"],
    "llmtune sft, 5 steps": [
        "-m", "llmtune", "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa", "--max_steps", "5",
        "--batch_size", "2", "--gradient_accumulation_steps", "1",
    ],
}  # fmt: skip


def measure(arguments: list[str], folder: str) -> tuple[float, float]:
    """(CPU-seconds, wall seconds) of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    wall = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(repeats + 1):
            for name, arguments in COMMANDS.items():
                figures = measure(arguments, folder)
                if round_number:
                    found[name].append(figures)
    print(f"{'command':<30}{'CPU-s median':>14}{'min':>8}{'max':>8}{'wall median':>14}")
    for name, figures in found.items():
        cpu, wall = zip(*figures, strict=True)
        print(
            f"{name:<30}{statistics.median(cpu):>14.2f}{min(cpu):>8.2f}{max(cpu):>8.2f}{statistics.median(wall):>14.2f}"
        )
    pairs = zip(found["llmtune sft, 5 steps"], found["import torch, peft, Trainer"], strict=True)
    ratio = statistics.median(job[0] / base[0] for job, base in pairs)
    print(f"\nA 5-step job costs {ratio:.2f} times the CPU-seconds of its imports (at most {LIMIT}).")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
