"""benchmarks/ still run on what they measure, small: their figures are not looked at here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import prepared
from .waiting import SECONDS

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("train.py", "--ways llmtune --steps 2 --repeats 1 --num_rows 40", "\nllmtune   "),
        ("rollouts.py", "--model llmtune-tiny --prompts 2 --group 2 --longest 9 --repeats 1", "times as fast"),
        ("loss.py", "--vocabulary 20000 --hidden 64 --tokens 600 --repeats 1", "times as fast"),
        ("optimizers.py", "--steps 2 --seeds 0 --ways masters 8bit plain", "\n| plain | "),
        ("peers.py", "--tokenizer TOKENIZER --jobs short --repeats 1", "\n| llmtune | "),
        ("memory.py", "--hidden 64 --layers 2 --vocabulary 20000 --ways packed", "\npacked  "),
        ("board.py", "--visits 1", "a changed field until its command"),
        ("encode.py", "TOKENIZER --rows 20 --repeats 1", "CPU-s a 1,000 rows"),
        ("streaming.py", "TOKENIZER --rows 20 --processes 2 --repeats 1", "CPU-s per 1,000 rows and process"),
        ("many_rows.py", "--rows 2000", "| 2,000 | second run | "),
        ("answers.py", "--model llmtune-tiny --rows 5 --max_rows 2 --longest 9 --repeats 1", "times as fast"),
        (
            "gpu/acceptance.py",
            "--shape tiny --device cpu --one_process --steps 2 --rows 40 "
            "--parts doctor embedded attention full fp8 grpo",
            "| full: full fine-tuning, --pure_bf16 | ok |",
        ),
        ("gpu/levers.py", "--shape tiny --device cpu --modes lora --levers packed --steps 2 --warmup 1", "\n| packed"),
    ],
)
def test_runs(script, flags, said, assets, tmp_path):
    words = flags.replace("TOKENIZER", str(assets / "tokenizers/qwen2_5")).split()
    words += ["--scratch", str(tmp_path / "scratch")] if script.startswith("gpu/") else []
    folder = tmp_path / "said"
    folder.mkdir()
    if script in ("loss.py", "memory.py"):  # they measure a process: a prepared one holds more than they need
        command = [sys.executable, str(BENCHMARKS / script), *words]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS, check=True).stdout
    else:
        out = prepared.start(BENCHMARKS / script, *words, folder=folder, cwd=tmp_path).check()
    assert said in out
