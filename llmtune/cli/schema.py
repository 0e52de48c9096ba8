"""`llmtune schema STAGE`: the JSON schema of a stage's YAML, for editors and agents."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmtune.arguments.schema import stage_schema
from llmtune.arguments.stages import STAGES
from llmtune.cli.words import print_json, refuse_flags
from llmtune.errors import UsageError

USAGE = f"usage: llmtune schema {'|'.join(STAGES)} > FILE.json\n"
EXAMPLES = (
    "llmtune schema sft > sft.schema.json",
    "# first line of run.yaml, for editors:  # yaml-language-server: $schema=sft.schema.json",
)


def run(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    refuse_flags(argv, USAGE)
    if len(argv) != 1:
        raise UsageError(f"Say which stage: {', '.join(STAGES)}. {USAGE.strip()}")
    print_json(stage_schema(argv[0]))
    return 0
