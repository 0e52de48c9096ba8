"""What short jobs cost: help, and whole 5-step LoRA jobs against merely importing the libraries that they need.

    python benchmarks/startup.py [--repeats 5] [--tokenizer FOLDER]

`--tokenizer`: of Qwen2.5, for a job with its vocabulary of 151,936 (2 layers, hidden 64, made here) on 700 rows, and
one on 5,000, which are encoded by tiktoken.

Each command runs as a process of its own, in turn (A B A B ...), after one warm-up that fills the caches. Compared are
CPU-seconds of the process and its children: they stay the same on a busy machine, where wall time does not. But its
memory bandwidth is shared, so that single pairs differ; the ratio is the median of all. Memory is the peak of the
process (VmHWM). What is needed are torch, peft and transformers' Trainer without packages that they import only because
they are installed (bitsandbytes, gptqmodel, torchao, scipy, boto3).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.25
NEEDED, INSTALLED, JOB = "the imports needed", "all that is installed", "sft, 5 steps"
REAL, ENCODED = "sft, 151,936 ids", "sft, 151,936 ids, 5,000 rows"
SETTINGS = ["--max_steps", "5", "--batch_size", "2", "--gradient_accumulation_steps", "1"]
COMMANDS = {
    "--help": ["-m", "llmtune", "--help"],
    "sft --help": ["-m", "llmtune", "sft", "--help"],
    "list models": ["-m", "llmtune", "list", "models"],
    INSTALLED: ["-c", "import torch, peft; from transformers import Trainer"],
    NEEDED: [
        "-c",
        "from llmtune.compat.optional import import_libraries; import_libraries(); from transformers import Trainer",
    ],
    JOB: ["-m", "llmtune", "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa", *SETTINGS],
}
Figures = tuple[float, float, float]
"""CPU-seconds, wall seconds, peak MiB."""


def measure(arguments: list[str], folder: Path) -> Figures:
    started = time.perf_counter()
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(arguments)} failed:\n{said.read()[-4000:]}")
    return used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024


def make_model(tokenizer: Path, folder: Path) -> None:
    """Make a model with the tokenizer's vocabulary."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=151_936, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / "model")


def real_jobs(tokenizer: Path, folder: Path) -> dict[str, list[str]]:
    """Make a model with the tokenizer's vocabulary, and rows; return the commands of the jobs with it.

    In a process of its own: what this one holds would count as the peak of each that it starts.
    """
    subprocess.run([sys.executable, __file__, "--make", str(folder), "--tokenizer", str(tokenizer)], check=True)
    words = [{"query": f"What is {number} times 7?", "response": f"It is {number * 7}."} for number in range(5_100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words), encoding="utf-8")
    model = ["--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(folder / "model")]
    common = ["-m", "llmtune", "sft", *model, *SETTINGS, "--dataset"]
    return {REAL: [*common, "tiny-qa"], ENCODED: [*common, str(folder / "rows.jsonl"), "--split_dataset_ratio", "0.01"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_model(options.tokenizer, options.make)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling each time is no cost of ours
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        commands = COMMANDS | (real_jobs(options.tokenizer.resolve(), folder) if options.tokenizer else {})
        found: dict[str, list[Figures]] = {name: [] for name in commands}
        for round_number in range(options.repeats + 1):
            for name, arguments in commands.items():
                figures = measure(arguments, folder)
                if round_number:
                    found[name].append(figures)
    print(f"{'command':<32}{'CPU-s median':>14}{'min':>8}{'max':>8}{'wall median':>14}{'peak MiB':>10}")
    for name, rows in found.items():
        cpu, wall, memory = zip(*rows, strict=True)
        times = f"{statistics.median(cpu):>14.2f}{min(cpu):>8.2f}{max(cpu):>8.2f}{statistics.median(wall):>14.2f}"
        print(f"{name:<32}{times}{max(memory):>10.0f}")
    print()
    ratios = {base: ratio(found[JOB], found[base]) for base in (NEEDED, INSTALLED)}
    for base, figure in ratios.items():
        print(f"A 5-step job costs {figure:.2f} times the CPU-seconds of {base}.")
    print(f"At most {LIMIT} times {NEEDED}.")
    sys.exit(ratios[NEEDED] > LIMIT)


def ratio(job: list[Figures], base: list[Figures]) -> float:
    return statistics.median(one[0] / other[0] for one, other in zip(job, base, strict=True))


if __name__ == "__main__":
    main()
