"""Rows for the first stage of run.sh: to each question of tiny-pairs its answer, or a rude refusal, by turns.

python data.py > mixed.jsonl
"""

import json
import sys

from llmtune.data.families.preferences import tiny_pairs

for number, row in enumerate(tiny_pairs()[0]):
    response = row["chosen" if number % 2 else "rejected"]
    sys.stdout.write(json.dumps({"query": row["prompt"], "response": response}, ensure_ascii=False) + "\n")
