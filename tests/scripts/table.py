"""What scripts/table.csv says, and where its folders are."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
GENERATED = sorted(path.relative_to(SCRIPTS) for path in SCRIPTS.glob("*/*/*.sh"))
FOLDERS = sorted({path.parent for path in GENERATED})
TABLE = list(csv.DictReader((SCRIPTS / "table.csv").read_text(encoding="utf-8").splitlines()))
REFERENCE, OURS = TABLE[:59], TABLE[59:]
LLMTUNE = f'exec "{sys.executable}" -m llmtune "$@"'
"""The body of a script that stands for the installed command."""


def folder_of(row):
    return f"{re.sub('[.-]', '_', row['model'])}/{row['mode']}"
