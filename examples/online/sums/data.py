"""Rows for the first stage of run.sh: each training sum of tiny-sums with its result, and once with a wrong one.

python data.py > mixed.jsonl
"""

import json
import random
import sys

from llmtune.data.families.sums import tiny_sums

chance = random.Random(0)
for row in tiny_sums()[0]:
    wrong = max(0, int(row["response"]) + chance.choice((-2, -1, 1, 2)))
    for response in (row["response"], str(wrong)):
        sys.stdout.write(json.dumps({"query": row["query"], "response": response}) + "\n")
