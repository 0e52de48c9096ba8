"""A local run pays for what it uses: nothing heavy that its steps do not need is imported before them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
HEAVY = ("trl", "modelscope", "matplotlib", "rouge_score", "nltk", "deepspeed", "mlflow")
from llmtune.training import callbacks
from llmtune import SftArguments, sft

def first_step(self, *_, **__):
    if not self.steps:
        print("FOUND", *[module for module in HEAVY if module in sys.modules])
    self.steps += 1

callbacks.Throughput.on_step_end = first_step
sft(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa#20"], max_steps=1))
print("DREW", "matplotlib" in sys.modules)
"""


@pytest.mark.slow
def test_imports_before_the_first_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "FOUND\n" in done.stdout
    assert "DREW True" in done.stdout, "the test would see it"
