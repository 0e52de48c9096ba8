"""Memory of whole LoRA runs on a CPU, against what `llmtune plan` says that they need.

    python benchmarks/memory.py [--hidden 512] [--layers 6] [--vocabulary 151936]

Each run is a process of its own. It trains llmtune-tiny first, so that imports and the allocator's start are no part of
what is measured: the highest resident memory of the second run, above the memory before it. What is needed: weights,
adapters with gradients and states, activations, and a chunk of logits, by `plan`. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GOAL = 1.15
WAYS: dict[str, dict[str, Any]] = {
    "no checkpointing": {"gradient_checkpointing": "none"},
    "full checkpointing": {"gradient_checkpointing": "full"},
    "packed": {"gradient_checkpointing": "none", "packing": True, "batch_size": 1},
}


def arguments(options: argparse.Namespace, model: str, output: Path, **more: Any) -> Any:
    from llmtune import SftArguments

    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny", "dataset": ["tiny-qa"], "max_length": 512, "batch_size": 8, "max_steps": 4,
        "gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0,
        "report_to": ["none"], "watch_prompts": [],
    }  # fmt: skip
    if model:
        settings |= {"model_id_or_path": model, "dataset": [str(output / "rows.jsonl")]}
    return SftArguments(**settings | more, output_dir=str(output / "runs"))


def make_model(options: argparse.Namespace, folder: Path) -> None:
    """A random Qwen2 with the tokenizer of llmtune-tiny, and rows of about 400 of its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from llmtune.models.tiny import tiny_folder

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4, num_hidden_layers=options.layers,
        num_attention_heads=8, num_key_value_heads=2, vocab_size=options.vocabulary, tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    for file in tiny_folder().glob("*token*"):
        shutil.copy(file, folder / "model" / file.name)
    row = {"query": "What is 1 plus 2? " * 12, "response": "1 plus 2 is 3. " * 22}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(64)), encoding="utf-8")


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def measure(options: argparse.Namespace) -> None:
    from llmtune.utils.memory import map_large_blocks

    map_large_blocks()  # as the command does, before torch allocates anything
    from llmtune import sft
    from llmtune.planning.plan import make_plan

    folder = Path(options.folder)
    more = WAYS[options.way]
    planned = make_plan(arguments(options, str(folder / "model"), folder, **more))
    sft(arguments(options, "", folder, **more))
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest memory counts from here
    sft(arguments(options, str(folder / "model"), folder, **more))
    one = planned.estimate
    parts = {name: getattr(one, name) for name in ("weights", "gradients", "optimizer", "activations", "logits")}
    print(json.dumps({"used": status("VmHWM") - before, "needed": one.total, "parts": parts}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(options, Path(folder))
        print(f"{'':<20}{'used':>10}{'needed':>10}  ratio   parts of what is needed")
        for way in options.ways:
            words = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", folder]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"LLMTUNE_CACHE": folder})
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found = json.loads(done.stdout.splitlines()[-1])
            parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in found["parts"].items())
            used, needed = found["used"] / 2**20, found["needed"] / 2**20
            print(f"{way:<20}{used:>7,.0f} MiB{needed:>7,.0f} MiB{used / needed:>6.2f}   {parts}")
    print(f"goal: at most {GOAL} times")


if __name__ == "__main__":
    main()
