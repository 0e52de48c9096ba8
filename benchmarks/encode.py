"""What encoding costs above the tokenizer itself: rows to ids and labels against the bare Rust tokenizer.

    python benchmarks/encode.py TOKENIZER_FOLDER FILE [FILE ...]

Both work on the same rendered rows in one process, in turn; the ratio is that of CPU-seconds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

from llmtune import get_template
from llmtune.data.formats import to_conversation
from llmtune.data.readers import read_rows


def cpu_seconds(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--template", default="qwen2.5")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    template = get_template(options.template, tokenizer)
    rows = [to_conversation(row) for file in options.files for _, row in read_rows(Path(file))]
    texts = [template.render(row) for row in rows]
    tokens = sum(len(sample.input_ids) for row in template.encode_rows(rows) for sample in row.samples)

    def encode() -> None:
        for start in range(0, len(rows), 1000):
            template.encode_rows(rows[start : start + 1000])

    def bare() -> None:
        for start in range(0, len(texts), 1000):
            tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False)

    pairs = [(cpu_seconds(encode), cpu_seconds(bare)) for _ in range(options.repeats)]
    ours, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{len(rows):,} rows, {tokens:,} tokens")
    print(f"rows to ids and labels  {ours:.2f} CPU-s, {ours / tokens * 1e6:.2f} a million tokens")
    print(f"the bare tokenizer      {floor:.2f} CPU-s, {floor / tokens * 1e6:.2f} a million tokens")
    print(f"ratio                   {ratio:.2f}")


if __name__ == "__main__":
    main()
