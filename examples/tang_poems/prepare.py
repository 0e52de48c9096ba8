"""Put the answers beside the test rows, so that `llmtune infer` can score what the model writes.

Line i of the answers belongs to row i. It holds the half-lines of the poem's rest, one after the other, with tabs
between them: two of them make a line of verse, "偕伴登山去，觀雪且賞桔。".

    python examples/tang_poems/prepare.py GenAI-Hw5/Tang_testing_data.json GenAI-Hw5/Tang_testing_gt.txt tang/test.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def poem(half_lines: list[str]) -> str:
    """Half-lines with the punctuation of the training data: a comma after the first of a pair, a full stop after it."""
    return "".join(half + ("，", "。")[place % 2] for place, half in enumerate(half_lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="JSON list of rows with instruction and input")
    parser.add_argument("answers", type=Path, help="text file with a line of half-lines for each row")
    parser.add_argument("output", type=Path, help="JSON Lines file to write")
    paths = parser.parse_args()

    rows = json.loads(paths.questions.read_text(encoding="utf-8"))
    lines = [line for line in paths.answers.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(rows) != len(lines):
        raise SystemExit(f"{paths.questions} has {len(rows)} rows, {paths.answers} {len(lines)} lines.")
    paths.output.parent.mkdir(parents=True, exist_ok=True)
    with paths.output.open("w", encoding="utf-8") as out:
        for row, line in zip(rows, lines, strict=True):
            out.write(json.dumps({**row, "output": poem(line.split())}, ensure_ascii=False) + "\n")
    print(f"{len(rows)} rows in {paths.output}")


if __name__ == "__main__":
    main()
