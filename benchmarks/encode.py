"""What it costs to make token ids and labels of chat rows, against transformers' own way and the bare tokenizer.

    python benchmarks/encode.py TOKENIZER_FOLDER                     CPU-seconds a 1,000 rows, in turn, as ratios
    python benchmarks/encode.py TOKENIZER_FOLDER --memory 10000 100000 1000000
                                                                     peak memory of the whole way to the store on disk

The rows are generated: one to three turns, a system prompt in a third of them, English, Chinese and code, 330 tokens
each. `apply_chat_template` goes row by row and asks for the mask of the assistant's tokens, as TRL does; it is given
the same text with {% generation %} marks, which Qwen's own template lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

WORDS = [
    *(
        "the",
        "a",
        "model",
        "of",
        "data",
        "time",
        "people",
        "when",
        "which",
        "because",
        "however",
        "learning",
        "data-set",
    ),
    *("你好", "我们", "模型", "训练", "数据", "3.14", "def", "return", "x", "=", "y", "+", "1"),
]
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


def generated(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Chat rows in the messages shape."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    for _ in range(count):
        messages = [{"role": "system", "content": text(8, 8)}] if draw.random() < 0.3 else []
        for _ in range(draw.choice([1, 1, 2, 3])):
            messages.append({"role": "user", "content": text(5, 60)})
            messages.append({"role": "assistant", "content": text(10, 150)})
        yield {"messages": messages}


def cpu_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(tokenizer_folder: str, num_rows: int, repeats: int) -> None:
    from transformers import AutoTokenizer

    from llmtune import get_template
    from llmtune.data.formats import to_conversation

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    template = get_template("qwen2.5", tokenizer)
    rows = list(generated(num_rows))
    conversations = [to_conversation(row) for row in rows]
    texts = [template.render(conversation) for conversation in conversations]
    preparing = cpu_seconds(lambda: template.expect(10**6))

    def ours() -> None:
        template.encode_rows(conversations)

    def theirs() -> None:
        for row in rows:
            tokenizer.apply_chat_template(
                row["messages"],
                chat_template=MARKED,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )

    def bare() -> None:
        tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)

    works = {"llmtune": ours, "apply_chat_template": theirs, "the bare tokenizer": bare}
    started = time.perf_counter()
    template.encode_rows(conversations)
    wall = time.perf_counter() - started
    found = [{name: cpu_seconds(work) for name, work in works.items()} for _ in range(repeats)]
    tokens = sum(len(sample.input_ids) for row in template.encode_rows(conversations) for sample in row.samples)
    print(f"{num_rows:,} rows, {tokens:,} tokens; llmtune {num_rows / wall:,.0f} rows/s")
    print(f"preparing the cheap way: {preparing:.2f} CPU-s, the check of the tokenizer included where it was not kept")
    for name in works:
        seconds = statistics.median(one[name] for one in found) / num_rows * 1000
        ratio = statistics.median(one[name] / one["llmtune"] for one in found)
        print(f"{name:<20} {seconds:.3f} CPU-s a 1,000 rows, {ratio:.2f} times llmtune's")


class AnonymousPeak(threading.Thread):
    """The most memory of its own that this process had: mapped files, which the system takes back, do not count."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.megabytes = 0.0
        self.start()

    def run(self) -> None:
        while True:
            self.megabytes = max(self.megabytes, now())
            time.sleep(0.02)


def now() -> float:
    """Anonymous memory of this process in MB, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def peak(tokenizer_folder: str, num_rows: int) -> None:
    """The way of `sft`, file to rows to token store. Runs in a process of its own: the peak is the whole process's."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLMTUNE_CACHE"] = folder
        from transformers import AutoTokenizer

        from llmtune import get_dataset, get_template
        from llmtune.samples.store import encode_dataset

        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in generated(num_rows))
        template = get_template("qwen2.5", AutoTokenizer.from_pretrained(tokenizer_folder))
        at_start, watch = now(), AnonymousPeak()
        marks = [(time.perf_counter(), time.process_time())]
        rows, _ = get_dataset(str(file), dataset_test_ratio=0)
        marks.append((time.perf_counter(), time.process_time()))
        store = encode_dataset(rows, template)
        marks.append((time.perf_counter(), time.process_time()))
        again = time.perf_counter()
        encode_dataset(get_dataset(str(file), dataset_test_ratio=0)[0], template)[0]
        again = time.perf_counter() - again
        (_, reading), (wall, encoding) = ((b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks))
        print(
            f"{num_rows:>9,} rows  CPU-s a 1,000 rows: reading {reading / num_rows * 1000:.3f}, "
            f"encoding {encoding / num_rows * 1000:.3f} ({len(store) / wall:,.0f} rows/s)  "
            f"peak {watch.megabytes:,.0f} MB, {at_start:,.0f} MB of it imports and tokenizer  "
            f"a second run's first row after {again:.2f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", type=int, nargs="*", help="numbers of rows to encode in processes of their own")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.tokenizer, options.peak)
    elif options.memory:
        for count in options.memory:
            subprocess.run([sys.executable, __file__, options.tokenizer, "--peak", str(count)], check=True)
    else:
        compare(options.tokenizer, options.rows, options.repeats)


if __name__ == "__main__":
    main()
