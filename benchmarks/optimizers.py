"""Full fine-tuning in bf16 without fp32 master weights, against fp32 masters: losses, for several seeds.

    python benchmarks/optimizers.py [--steps 200] [--seeds 0 1 2] [--learning_rate 2e-5] [--model FOLDER]
        [--ways masters 8bit 4bit offloaded plain]

All train the same rows in the same order and compute in bf16; the model is a random Qwen2 of one layer, hidden 32,
unless given. `plain` is 8bit with weights rounded to nearest. The loss is the mean over the last tenth of the steps;
the noise that a difference is to be held against is that of the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from llmtune import SftArguments, sft
from llmtune.models.tiny import tiny_folder

WAYS: dict[str, dict[str, Any]] = {
    "masters": {"dtype": "bf16"},
    "8bit": {"pure_bf16": True, "optim": "adamw_torch_8bit"},
    "4bit": {"pure_bf16": True, "optim": "adamw_torch_4bit"},
    "offloaded": {"pure_bf16": True, "optim_offload": True},
    "plain": {"pure_bf16": True, "optim": "adamw_torch_8bit"},
}


@contextlib.contextmanager
def rounding(way: str) -> Iterator[None]:
    if way != "plain":
        yield
        return
    with mock.patch("torchao.optim.adam._fp32_to_bf16_sr", lambda found: found.bfloat16()):
        yield


def loss_of(args: argparse.Namespace, way: str, seed: int) -> tuple[float, float]:
    """The loss of the first step, and the mean of the last ones."""
    with tempfile.TemporaryDirectory() as folder, rounding(way):
        run = sft(
            SftArguments(
                model_type="llmtune-tiny", model_id_or_path=args.model, dataset=["tiny-qa"], sft_type="full", seed=seed,
                batch_size=args.batch_size, gradient_accumulation_steps=1, max_steps=args.steps, logging_steps=1,
                learning_rate=args.learning_rate, save_strategy="no", eval_strategy="no", report_to=["none"],
                output_dir=folder, **WAYS[way],
            )
        ).output_dir  # fmt: skip
        lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses[0], statistics.mean(losses[-max(len(losses) // 10, 1) :])


def make_model(folder: Path) -> str:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=2048, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / name, folder / name)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--model", default=None)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    args = parser.parse_args()
    work = tempfile.TemporaryDirectory()
    args.model = args.model or make_model(Path(work.name))
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in args.ways}
    for seed in args.seeds:
        for way in args.ways:
            found[way].append(loss_of(args, way, seed))
            print(f"{way}, seed {seed}: {found[way][-1][1]:.4f}", flush=True)
    print("| way | " + " | ".join(f"seed {seed}" for seed in args.seeds) + " | mean | beside the first |")
    print("|---" * (len(args.seeds) + 3) + "|")
    first = statistics.mean(last for _, last in found[args.ways[0]])
    for way, losses in found.items():
        mean = statistics.mean(last for _, last in losses)
        cells = " | ".join(f"{last:.4f}" for _, last in losses)
        print(f"| {way} | {cells} | {mean:.4f} | {mean - first:+.4f} |")
    print(f"losses of the first step: {', '.join(f'{start:.4f}' for start, _ in found[args.ways[0]])}")


if __name__ == "__main__":
    main()
