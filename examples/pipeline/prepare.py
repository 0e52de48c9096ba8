"""Write the embedded data as the files that the stages read, and print the folder of the embedded model.

python examples/pipeline/prepare.py FOLDER

FOLDER/pretrain/    .txt, a document per line
FOLDER/finetune/    .jsonl, conversations of human and gpt
FOLDER/reward/      .jsonl, a question with a chosen and a rejected response
FOLDER/grpo/        .jsonl, a question with the number that answers it
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from llmtune.data.families.embedded import facts, tiny_text
from llmtune.data.families.preferences import tiny_pairs
from llmtune.models.tiny import tiny_folder


def main() -> None:
    folder = Path(sys.argv[1])
    texts, _ = tiny_text()
    write(folder / "pretrain" / "texts.txt", (" ".join(row["text"].split()) for row in texts))
    questions, _ = facts()
    conversations = (
        {"conversations": [{"from": "human", "value": row["query"]}, {"from": "gpt", "value": row["response"]}]}
        for row in questions
    )
    write(folder / "finetune" / "conversations.jsonl", map(as_json, conversations))
    pairs, _ = tiny_pairs()
    names = {"prompt": "question", "chosen": "response_chosen", "rejected": "response_rejected"}
    write(folder / "reward" / "pairs.jsonl", (as_json({names[key]: row[key] for key in names}) for row in pairs))
    sums = ((row["query"], re.search(r"\d+(?=\.$)", row["response"])) for row in questions)
    write(folder / "grpo" / "sums.jsonl", (as_json({"question": text, "answer": m[0]}) for text, m in sums if m))
    print(tiny_folder())


def as_json(row: object) -> str:
    return json.dumps(row, ensure_ascii=False)


def write(file: Path, lines: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
