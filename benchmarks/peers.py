"""The same LoRA jobs by the commands of llmtune, ms-swift and LLaMA-Factory, each in its own environment.

    python benchmarks/peers.py --tokenizer FOLDER [--swift PYTHON] [--llama_factory PYTHON] [--repeats 3]

`--swift`, `--llama_factory`: interpreters of environments with them and torch of the same version. The model
is a random Qwen2 with Qwen2.5's tokenizer, the rows are chats of mixed lengths, written here. The jobs:

- help: the flags of the command that trains.
- short: 5 steps of 2 rows, a model of 2 layers: what starting costs.
- rows: 5,000 rows to the first step of 2, with empty caches and again.
- training: the CPU-seconds of 8 steps of 4 rows, which are all, less those of 2 steps, a model of 6 layers: what a
  step costs, start and end left out; useful tokens, those of the rows without padding, per CPU-second.

All that train do LoRA of rank 8 on all linear layers in fp32, without gradient checkpointing, evaluation and
checkpoints, with their own defaults for the rest. Jobs run in turn (A B C A B C ...), after one that fills the caches,
but for rows; shown are medians, of CPU-seconds of a process and its children, and of the peak of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROWS, MANY_ROWS, CUT = 32, 5_000, 1024
SHORT = {"layers": 2, "hidden": 64, "batch": 2}
TRAINING = {"layers": 6, "hidden": 256, "batch": 4}
TEXT = "the of a model learns to write short and long answers about rivers music numbers and old houses"


class Figures(NamedTuple):
    cpu: float
    peak_mib: float


class Job(NamedTuple):
    folder: Path
    steps: int
    batch: int


def llmtune(python: str, job: Job) -> list[str]:
    flags = [
        *("--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(job.folder)),
        *("--dataset", str(job.folder / "rows.jsonl"), "--max_length", str(CUT), "--dataset_test_ratio", "0"),
        *("--lora_target_modules", "ALL", "--max_steps", str(job.steps), "--batch_size", str(job.batch)),
        *("--gradient_accumulation_steps", "1", "--gradient_checkpointing", "none", "--dtype", "fp32"),
        *("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none", "--output_dir", "made"),
    ]
    return [python, "-m", "llmtune", "sft", *flags]


def swift(python: str, job: Job) -> list[str]:
    flags = [
        *("--model", str(job.folder), "--model_type", "qwen2", "--template", "qwen2_5", "--tuner_type", "lora"),
        *("--dataset", str(job.folder / "rows.jsonl"), "--max_length", str(CUT), "--split_dataset_ratio", "0"),
        *("--target_modules", "all-linear", "--max_steps", str(job.steps), "--lora_rank", "8"),
        *("--per_device_train_batch_size", str(job.batch), "--gradient_accumulation_steps", "1"),
        *("--gradient_checkpointing", "false", "--torch_dtype", "float32", "--eval_strategy", "no"),
        *("--save_strategy", "no", "--report_to", "none", "--output_dir", "made", "--dataloader_num_workers", "0"),
    ]
    return [str(Path(python).parent / "swift"), "sft", *flags]


def llama_factory(python: str, job: Job) -> list[str]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (job.folder / "dataset_info.json").write_text(json.dumps({"rows": about}))
    settings = {
        "model_name_or_path": str(job.folder), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_target": "all", "lora_rank": 8, "dataset": "rows", "dataset_dir": str(job.folder), "template": "qwen",
        "cutoff_len": CUT, "max_steps": job.steps, "per_device_train_batch_size": job.batch, "report_to": "none",
        "gradient_accumulation_steps": 1, "disable_gradient_checkpointing": True, "save_strategy": "no",
        "output_dir": "made", "overwrite_output_dir": True, "overwrite_cache": False, "dataloader_num_workers": 0,
    }  # fmt: skip
    file = job.folder / f"run-{job.steps}.yaml"
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()))
    return [str(Path(python).parent / "llamafactory-cli"), "train", str(file)]


HELP: dict[str, Callable[[str], list[str]]] = {
    "llmtune": lambda python: [python, "-m", "llmtune", "sft", "--help"],
    "ms-swift": lambda python: [str(Path(python).parent / "swift"), "sft", "--help"],
    "LLaMA-Factory": lambda python: [str(Path(python).parent / "llamafactory-cli"), "train", "--help"],
}
COMMANDS: dict[str, Callable[[str, Job], list[str]]] = {
    "llmtune": llmtune,
    "llmtune, padded": lambda python, job: [*llmtune(python, job), "--padding_free", "false"],
    "ms-swift": swift,
    "LLaMA-Factory": llama_factory,
}


def make(folder: Path, tokenizer: Path, *, layers: int, hidden: int, rows: int) -> None:
    """A random Qwen2, its tokenizer, and rows of a few to some hundred words."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    chance = random.Random(0)

    def text(mean: float) -> str:
        return " ".join(chance.choices(TEXT.split(), k=max(2, min(int(chance.lognormvariate(0, 1) * mean), 600))))

    made = [
        {"messages": [{"role": "user", "content": text(40)}, {"role": "assistant", "content": text(80)}]}
        for _ in range(rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def tokens_per_row(folder: Path) -> float:
    """Mean length of a row in Qwen2.5's template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) for row in rows]
    return statistics.mean(min(length, CUT) for length in found)


CACHES = {"LLMTUNE_CACHE": "llmtune", "HF_DATASETS_CACHE": "datasets", "MODELSCOPE_CACHE": "modelscope"}


def measure(words: list[str], scratch: Path) -> Figures:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "USE_HF": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    environment |= {name: str(scratch / "caches" / folder) for name, folder in CACHES.items()}
    with (scratch / "said").open("w+") as said:
        process = subprocess.Popen(words, cwd=scratch, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{said.read()[-4000:]}")
    return Figures(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def run_all(pythons: dict[str, str], jobs: list[Job], repeats: int, scratch: Path) -> dict[tuple[str, Job], Figures]:
    found: dict[tuple[str, Job], list[Figures]] = {}
    for number in range(repeats + 1):
        for name, python in pythons.items():
            for job in jobs:
                figures = measure(COMMANDS[name](python, job), scratch)
                if number:
                    found.setdefault((name, job), []).append(figures)
    return {key: median(rows) for key, rows in found.items()}


def median(found: list[Figures]) -> Figures:
    return Figures(*(statistics.median(column) for column in zip(*found, strict=True)))


# The jobs, each with its table


def show_help(pythons: dict[str, str], repeats: int, scratch: Path, per_row: float) -> None:
    found: dict[str, list[Figures]] = {}
    for number in range(repeats + 1):
        for name, python in pythons.items():
            figures = measure(HELP[name](python), scratch)
            if number:
                found.setdefault(name, []).append(figures)
    print("| `--help` of training | CPU-seconds | peak MiB |\n|---|---|---|")
    for name, rows in found.items():
        print(f"| {name} | {median(rows).cpu:.2f} | {median(rows).peak_mib:,.0f} |")


def show_short(pythons: dict[str, str], repeats: int, scratch: Path, per_row: float) -> None:
    short = Job(scratch / "short", 5, SHORT["batch"])
    found = run_all(pythons, [short], repeats, scratch)
    print("| 5 steps | CPU-seconds | peak MiB |\n|---|---|---|")
    for name in pythons:
        print(f"| {name} | {found[name, short].cpu:.2f} | {found[name, short].peak_mib:,.0f} |")


def show_rows(pythons: dict[str, str], repeats: int, scratch: Path, per_row: float) -> None:
    job = Job(scratch / "rows", 1, SHORT["batch"])
    found: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(repeats):
        for name, python in pythons.items():
            shutil.rmtree(scratch / "caches", ignore_errors=True)
            for run in ("first", "again"):
                found.setdefault((name, run), []).append(measure(COMMANDS[name](python, job), scratch))
    print(f"| {MANY_ROWS:,} rows to the first step | CPU-seconds | again | peak MiB |\n|---|---|---|---|")
    for name in pythons:
        first, again = median(found[name, "first"]), median(found[name, "again"])
        print(f"| {name} | {first.cpu:.2f} | {again.cpu:.2f} | {first.peak_mib:,.0f} |")


def show_training(pythons: dict[str, str], repeats: int, scratch: Path, per_row: float) -> None:
    pythons = {"llmtune": pythons["llmtune"], "llmtune, padded": pythons["llmtune"], **pythons}
    few, many = (Job(scratch / "training", steps, TRAINING["batch"]) for steps in (2, 8))
    found = run_all(pythons, [few, many], repeats, scratch)
    tokens = per_row * (many.steps - few.steps) * many.batch
    print("| training | useful tokens per CPU-second | peak MiB |\n|---|---|---|")
    for name in pythons:
        speed = tokens / (found[name, many].cpu - found[name, few].cpu)
        print(f"| {name} | {speed:,.0f} | {found[name, many].peak_mib:,.0f} |")


JOBS = {"help": show_help, "short": show_short, "rows": show_rows, "training": show_training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--swift")
    parser.add_argument("--llama_factory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        for name, sizes, rows in (("short", SHORT, ROWS), ("training", TRAINING, ROWS), ("rows", SHORT, MANY_ROWS)):
            layers, hidden = sizes["layers"], sizes["hidden"]
            make(options.make / name, options.tokenizer, layers=layers, hidden=hidden, rows=rows)
        sys.stdout.write(str(tokens_per_row(options.make / "training")))
        return
    given = {"llmtune": sys.executable, "ms-swift": options.swift, "LLaMA-Factory": options.llama_factory}
    pythons = {name: python for name, python in given.items() if python}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        # in a process of its own: what this one holds would count as the peak of each that it starts
        words = [sys.executable, __file__, "--make", made, "--tokenizer", str(options.tokenizer.resolve())]
        said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
        per_row = float(said.splitlines()[-1])  # other lines are warnings of libraries
        for job in options.jobs:
            JOBS[job](pythons, options.repeats, scratch, per_row)


if __name__ == "__main__":
    main()
