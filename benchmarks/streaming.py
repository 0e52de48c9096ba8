"""What streamed rows cost each process of a machine, when one, two, four or eight of them share the encoding.

    python benchmarks/streaming.py TOKENIZER_FOLDER          CPU-seconds per 1,000 rows of each process, and as ratios

The rows are those of encode.py, in a file. Each process takes all samples of some windows from the stream, as a rank
does, and does nothing else. What every process does for all rows, to read them and to convert them to messages, is
measured alone in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from itertools import islice, pairwise
from pathlib import Path

from encode import generated

WINDOW_ROWS = 4096


def measure(tokenizer_folder: str, file: Path, num_rows: int) -> None:
    """Print CPU-seconds of this process: for reading, for reading and converting, and for the whole way to samples."""
    from transformers import AutoTokenizer

    from llmtune import get_template
    from llmtune.data.readers import read_rows
    from llmtune.data.streaming import RecordStream
    from llmtune.samples.part_exchange import exchange_on_this_machine
    from llmtune.samples.streaming import StreamedSamples

    template = get_template("qwen2.5", AutoTokenizer.from_pretrained(tokenizer_folder))
    template.expect(10**6)  # once per process, a second: not counted
    marks = [time.process_time()]
    deque(read_rows(file), maxlen=0)
    marks.append(time.process_time())
    deque(RecordStream([str(file)]), maxlen=0)
    marks.append(time.process_time())
    stream = StreamedSamples(
        RecordStream([str(file)]),
        template,
        seed=0,
        capacity=None,
        rows=WINDOW_ROWS,
        exchange=exchange_on_this_machine(),
    )
    running = iter(stream)
    deque(islice(running, num_rows), maxlen=0)
    marks.append(time.process_time())
    sys.stdout.write(json.dumps([after - before for before, after in pairwise(marks)]) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()  # until all are done, as ranks are


def together(count: int, tokenizer_folder: str, file: Path, num_rows: int) -> list[list[float]]:
    """Measure this many processes at a time."""
    started = []
    for place in range(count):
        ranks = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        words = [sys.executable, __file__, tokenizer_folder, "--file", str(file), "--rows", str(num_rows)]
        environment = os.environ | {name: str(value) for name, value in ranks.items()}
        started.append(
            subprocess.Popen(words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
    found = [json.loads(process.stdout.readline()) for process in started]
    for process in started:
        process.communicate("\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", type=int, default=6 * WINDOW_ROWS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file is not None:
        measure(options.tokenizer, options.file, options.rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMTUNE_CACHE"] = folder
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in generated(options.rows))
        alone: tuple[float, float] | None = None
        for count in options.processes:
            runs = [together(count, options.tokenizer, file, options.rows) for _ in range(options.repeats)]
            read, converted, whole = (
                statistics.median(one[column] for run in runs for one in run) / options.rows * 1000
                for column in range(3)
            )
            encoded = whole - converted
            alone = alone or (whole, encoded)
            print(
                f"{count} processes: {whole:.3f} CPU-s per 1,000 rows and process, {alone[0] / whole:.2f} times less; "
                f"without reading and converting {encoded:.3f}, {alone[1] / encoded:.2f} times less; "
                f"to read {read:.3f}, to read and convert {converted:.3f}"
            )


if __name__ == "__main__":
    main()
