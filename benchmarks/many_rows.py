"""Preparing many rows: time and memory of `llmtune sft --max_steps 1`, from files of JSON lines to the first step.

    python benchmarks/many_rows.py --rows 100000 1000000 10000000 [--processes 2] [--files 4]

Short chats (54 tokens of the embedded tokenizer) in a folder of files, read and encoded by `--processes` processes into
a cache of their own, packed, and learned from in one step; then the same again, from the cache. Memory is that of its
own of each process, at its peak: mapped files, which the system takes back when it needs them, do not count. Needs
Linux, and 0.7 GB of disk per million rows in --scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

TEXT = "the of a model learns to write short and long answers about rivers music numbers and old houses"


def write_rows(folder: Path, rows: int, files: int) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(TEXT.split(), k=draw.randint(3, 12))) for _ in range(20_000)]
    for number in range(files):
        with (folder / f"{number:03}.jsonl").open("w", encoding="utf-8") as file:
            for row in range(rows // files):
                query = f"{number} {row} {texts[row % 19_997]}"
                file.write(json.dumps({"query": query, "response": texts[row * 7 % 20_000]}) + "\n")


def run(data: Path, processes: int, scratch: Path) -> tuple[float, float, list[float]]:
    """Wall time, CPU-seconds and the peaks of the processes in MB, the largest first."""
    words = [sys.executable, "-m", "llmtune", "sft", "--model_type", "llmtune-tiny", "--dataset", str(data)]
    words += ["--dataset_test_ratio", "0", "--train_dataset_sample", "-1", "--packing", "true", "--max_length", "512"]
    words += ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none"]
    words += ["--dataset_num_proc", str(processes), "--output_dir", str(scratch / "output")]
    environment = os.environ | {"LLMTUNE_CACHE": str(scratch / "cache"), "OMP_NUM_THREADS": "1"}
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peaks: dict[int, float] = {}
    with (scratch / "said").open("w+") as said:
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            for one in [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]:
                peaks[one] = max(peaks.get(one, 0), own_memory(one))
            time.sleep(0.1)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read()[-4000:])
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - began, cpu, sorted(peaks.values(), reverse=True)


def own_memory(pid: int) -> float:
    """Anonymous memory in MB; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    print("| rows | | wall s | CPU-s | peak of each process, MB |\n|---|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as made:
            data = Path(made) / "data"
            data.mkdir()
            write_rows(data, rows, options.files)
            for name in ("first run", "second run"):
                wall, cpu, peaks = run(data, options.processes, Path(made))
                print(
                    f"| {rows:,} | {name} | {wall:.1f} | {cpu:.1f} | {', '.join(f'{one:,.0f}' for one in peaks)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
