"""What each lever brings on one GPU: tokens/s, MFU and peak memory, with the loss beside that of plain transformers.

    python benchmarks/gpu/levers.py                             Qwen2.5-7B's shape with random weights, on the GPU
    python benchmarks/gpu/levers.py --modes lora --steps 20     one mode
    python benchmarks/gpu/levers.py --shape tiny --device cpu   the script itself, tried on any machine in minutes

Nothing is downloaded: the weights are random, made on the device and kept below --scratch (15 GB in bf16); the rows are
generated; the tokenizer is that of the embedded model, whose ids the large vocabulary contains. Every lever runs in a
process of its own with the same seed and rows, so that the losses of packed runs can be laid side by side. Levers add
up from row to row. A lever whose flag this version does not have, or that does not fit by `llmtune plan`, is left out
with a line that says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from timed import SHAPES, make_inputs, run_flags, timed

PADDED_BATCH = 8
"""Rows of a batch that is not packed: of about as many tokens, with its padding, as a pack."""

MODES: dict[str, dict[str, Any]] = {
    "lora": {"sft_type": "lora", "lora_rank": 16, "lora_target_modules": ["ALL"]},
    "qlora": {"sft_type": "lora", "lora_rank": 16, "lora_target_modules": ["ALL"], "quantization_bit": 4},
    # fp32 weights and AdamW's fp32 states alone would take 113 GiB of 7B
    "full": {"sft_type": "full", "optim": "adamw_bnb_8bit", "learning_rate": 1e-5},
}
PACKED = {"packing": True, "batch_size": 1}
LEVERS: dict[str, dict[str, Any]] = {
    "plain": {"batch_size": PADDED_BATCH, "gradient_checkpointing": "full"},
    "reference": PACKED | {"gradient_checkpointing": "full"},
    "packed": PACKED | {"gradient_checkpointing": "full"},
    "selective": PACKED | {"gradient_checkpointing": "selective"},
    "no checkpointing": PACKED | {"gradient_checkpointing": "none"},
    "logits at once": PACKED | {"gradient_checkpointing": "none"},
    "varlen": PACKED | {"gradient_checkpointing": "none", "attn_impl": "varlen"},
    "liger": PACKED | {"gradient_checkpointing": "none", "attn_impl": "varlen", "use_liger": True},
    "compile": PACKED | {"gradient_checkpointing": "none", "attn_impl": "varlen", "torch_compile": True},
    "fp8": PACKED | {"gradient_checkpointing": "none", "attn_impl": "varlen", "fp8_base": True},
}
MEANING = {
    "plain": f"{PADDED_BATCH} padded rows, full checkpointing",
    "reference": "packed; plain transformers: its own forward and cross entropy of all logits",
    "packed": "packed, full checkpointing, loss in chunks at trainable positions",
    "selective": "... selective checkpointing",
    "no checkpointing": "... no checkpointing",
    "logits at once": "... as the one before, but the loss not in chunks",
    "varlen": "no checkpointing, torch's varlen attention",
    "liger": "... with Liger's kernels",
    "compile": "... varlen, layers compiled",
    "fp8": "... varlen, the frozen base in fp8",
}

# One lever, in a process of its own


def measure(options: argparse.Namespace) -> None:
    from llmtune import SftArguments, sft
    from llmtune.models import chunked_loss as loss
    from llmtune.training import build

    flags = MODES[options.mode] | LEVERS[options.lever]
    args = SftArguments(**(run_flags(Path(options.scratch), options.shape, options.steps) | flags))
    if options.lever == "reference":
        build.install_supervised_loss = lambda _: None
    if options.lever == "logits at once":
        loss.CHUNK_POSITIONS = 10**9
    answer(timed(sft, args, options.warmup))


def answer(found: dict[str, Any]) -> None:
    print("\nRESULT " + json.dumps(found), flush=True)


# All of them


def missing(lever: dict[str, Any], mode: dict[str, Any]) -> str:
    """Why a lever cannot be tried here; "" where it can."""
    from llmtune import SftArguments

    known = {field.name for field in dataclasses.fields(SftArguments)}
    unknown = [f"--{name}" for name in lever if name not in known]
    if unknown:
        return f"this version has no {' '.join(unknown)}"
    if lever.get("fp8_base") and (mode["sft_type"] == "full" or mode.get("quantization_bit")):
        return "its base is not frozen in bf16"
    needed = [("quantization_bit", "bitsandbytes"), ("use_liger", "liger_kernel")]
    needs = [package for name, package in needed if (lever | mode).get(name)]
    needs += ["bitsandbytes"] if "bnb" in str(mode.get("optim")) else []
    gone = [package for package in needs if importlib.util.find_spec(package) is None]
    return f"{', '.join(gone)} is not installed" if gone else ""


def compare(options: argparse.Namespace) -> None:
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {})
    call = [sys.executable, __file__, f"--scratch={options.scratch}", f"--shape={options.shape}"]
    call += [f"--device={options.device}", f"--steps={options.steps}", f"--warmup={options.warmup}"]
    subprocess.run([*call, f"--rows={options.rows}", "--make"], check=True, env=environment, stdout=subprocess.DEVNULL)
    for mode in options.modes:
        print(f"\n## {mode}\n")
        print("| lever | tokens/s | MFU | peak GiB | plan GiB | plan : peak | loss | beside the reference |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        curves: dict[str, list[float]] = {}
        for name in options.levers:
            reason = missing(LEVERS[name], MODES[mode])
            found = {"skipped": reason} if reason else child([*call, f"--mode={mode}", f"--lever={name}"], environment)
            print(row(name, found, curves.get("reference")), flush=True)
            curves[name] = found.get("losses", [])
        print("\nLosses, step by step:\n")
        for name, losses in ((name, losses) for name, losses in curves.items() if losses):
            print(f"    {name:<18}" + " ".join(f"{one:.4f}" for one in losses))


def child(call: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    if "RESULT " in done.stdout:
        return dict(json.loads(done.stdout.rsplit("RESULT ", 1)[1]))
    last = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    return {"skipped": f"it failed: {last[-1][:200]}"}


def row(name: str, found: dict[str, Any], reference: list[float] | None) -> str:
    label = f"{name}: {MEANING[name]}"
    if "skipped" in found:
        return f"| {label} | left out: {found['skipped']} | | | | | | |"
    peak, plan, losses = found["peak"] / 2**30, found["plan"] / 2**30, found["losses"]
    mfu = f"{found['tflops'] / found['peak_tflops']:.1%}" if found["peak_tflops"] else f"{found['tflops']:.3g} TFLOP/s"
    # the estimate is that of llmtune's own loss
    planned = "- | -" if name in ("reference", "logits at once") else f"{plan:.2f} | {plan / peak:.2f}"
    beside = "-"
    if reference and name not in ("plain", "reference"):
        apart = [abs(ours - theirs) for ours, theirs in zip(losses, reference, strict=True)]
        beside = f"{statistics.mean(apart):.1e} apart on average, {max(apart):.1e} at most"
    return (
        f"| {label} | {found['tokens/s']:,.0f} | {mfu} | {peak:.2f} | {planned} "
        f"| {losses[0]:.4f} to {losses[-1]:.4f} | {beside} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not timed")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--scratch", default="/tmp/llmtune-levers", help="folder for the weights and the rows")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--lever", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_inputs(Path(options.scratch), options.shape, options.device, options.rows)
    elif options.lever:
        measure(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
