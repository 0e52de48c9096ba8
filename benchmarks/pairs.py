"""dpo against trl's DPOTrainer on real pairs: tokens/s, CPU-seconds, memory, the loss of the first step.

    python benchmarks/pairs.py --tokenizer FOLDER --rows pairs.json [--steps 6] [--batch_size 4] [--repeats 3]
        [--vocabulary 151936] [--hidden 256] [--layers 6] [--ways llmtune apart sft trl]

Each way runs in a process of its own, in turn: llmtune with each prompt computed once, llmtune with each response
behind its own prompt (apart), trl, and llmtune's sft on the chosen responses for its memory. All train LoRA of rank 8
on all linear layers in fp32, on the same pairs in the same batches, without gradient checkpointing; llmtune computes
the reference of all pairs before its first step, trl in each step. Useful tokens are those of both responses with the
prompt before each, 2 P + C + R, whichever way they are computed; seconds are those of the steps, after the first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("llmtune", "apart", "sft", "trl")
RATE = 1e-4


def make_model(args: argparse.Namespace, folder: Path) -> None:
    import shutil

    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shutil.copytree(args.tokenizer, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    heads = max(args.hidden // 64, 1)
    config = Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 4,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def write_pairs(args: argparse.Namespace, model: Path, file: Path) -> None:
    """The first pairs that fit the limit whole, as trl and llmtune read them; beside them the useful tokens of each."""
    from transformers import AutoTokenizer

    from llmtune.data.comparisons import to_comparison
    from llmtune.templates.comparisons import encode_comparisons
    from llmtune.templates.lookup import get_template

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [to_comparison(row) for row in json.loads(Path(args.rows).read_text(encoding="utf-8"))]
    made = encode_comparisons(rows, get_template("qwen2.5", tokenizer), args.max_length)
    lines, sizes = [], []
    for row, one in zip(rows, made, strict=True):
        if not one.responses or one.num_turns_cut or len(lines) == args.steps * args.batch_size:
            continue
        prompt = [{"role": message.role, "content": message.content} for message in row.prompt.messages]
        sides = [[{"role": "assistant", "content": answer.messages[0].content}] for answer in row.answers]
        lines.append(json.dumps({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}))
        sizes.append(2 * len(one.prompt) + sum(len(response.input_ids) for response in one.responses))
    file.write_text("\n".join(lines), encoding="utf-8")
    file.with_suffix(".sizes").write_text(json.dumps(sizes))


class Watch:
    """The ends of steps and their losses, of any Trainer."""

    def __init__(self) -> None:
        from transformers.trainer_callback import CallbackHandler

        self.ends: list[float] = []
        self.losses: list[float] = []
        own_end, own_log = CallbackHandler.on_step_end, CallbackHandler.on_log

        def end(handler: Any, *args: Any, **kwargs: Any) -> Any:
            self.ends.append(time.perf_counter())
            return own_end(handler, *args, **kwargs)

        def log(handler: Any, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> Any:
            if "loss" in logs:
                self.losses.append(logs["loss"])
            return own_log(handler, args, state, control, logs, **kwargs)

        CallbackHandler.on_step_end, CallbackHandler.on_log = end, log


def run_llmtune(args: argparse.Namespace, way: str) -> None:
    from llmtune import DpoArguments, SftArguments, dpo, sft

    common: dict[str, Any] = {
        "model_type": "qwen2.5-0.5b-instruct", "model_id_or_path": args.model, "dataset": [args.pairs],
        "lora_target_modules": ["ALL"], "lora_dropout_p": 0.0, "batch_size": args.batch_size,
        "gradient_accumulation_steps": 1, "max_steps": args.steps, "max_length": args.max_length, "logging_steps": 1,
        "learning_rate": RATE, "dataset_test_ratio": 0.0, "eval_strategy": "no", "save_strategy": "no",
        "gradient_checkpointing": "none", "report_to": ["none"], "output_dir": args.work, "train_dataset_sample": -1,
    }  # fmt: skip
    if way == "sft":
        sft(SftArguments(**common))
    else:
        dpo(DpoArguments(**common, share_prompt="true" if way == "llmtune" else "false"))


def run_trl(args: argparse.Namespace) -> None:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(
        output_dir=args.work, per_device_train_batch_size=args.batch_size, max_steps=args.steps, learning_rate=RATE,
        max_length=args.max_length, logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=1.0, weight_decay=0.01, warmup_steps=1,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model),
        args=settings,
        train_dataset=load_dataset("json", data_files=args.pairs, split="train"),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(
            r=8, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()


def child(args: argparse.Namespace) -> None:
    watch = Watch()
    run_trl(args) if args.child == "trl" else run_llmtune(args, args.child)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": watch.ends[-1] - watch.ends[0],
        "cpu": used.ru_utime + used.ru_stime,
        "peak": used.ru_maxrss / 1024,
        "first": watch.losses[0],
    }
    Path(args.result).write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of Qwen2.5's tokenizer, with its chat template")
    parser.add_argument("--rows", required=True, help="file of pairs, in any shape that llmtune reads")
    for name, value in (("steps", 6), ("batch_size", 4), ("repeats", 3), ("max_length", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("vocabulary", 151936), ("hidden", 256), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    for name in ("child", "model", "pairs", "work", "result"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if args.child:
        child(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    make_model(args, folder / "model")
    pairs = folder / "pairs.jsonl"
    write_pairs(args, folder / "model", pairs)
    sizes = json.loads(pairs.with_suffix(".sizes").read_text())
    useful = sum(sizes) * (args.steps - 1) / args.steps
    os.environ["LLMTUNE_CACHE"] = str(folder / "cache")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for _ in range(args.repeats):
        for way in args.ways:
            result = folder / "result.json"
            words = [sys.executable, __file__, *sys.argv[1:], "--child", way, "--model", str(folder / "model")]
            words += ["--pairs", str(pairs), "--work", str(folder / "work"), "--result", str(result)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr[-4000:]}")
            found[way].append(json.loads(result.read_text()))
    print(f"{len(sizes)} pairs, {sum(sizes):,} useful tokens; {' '.join(sys.argv[1:])}")
    print(f"{'':<10}{'tokens/s':>10}{'CPU-s':>8}{'peak MB':>9}{'first loss':>12}")
    rates = {way: [useful / one["seconds"] for one in runs] for way, runs in found.items()}
    for way, runs in found.items():
        middle = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        rate = "-" if way == "sft" else f"{statistics.median(rates[way]):,.0f}"
        print(f"{way:<10}{rate:>10}{middle['cpu']:>8.1f}{middle['peak']:>9,.0f}{middle['first']:>12.6f}")
    for one, other in (("llmtune", "trl"), ("llmtune", "apart")):
        if one in rates and other in rates:
            ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
            print(f"{one} / {other}: {statistics.median(ratios):.2f} times the tokens/s")


if __name__ == "__main__":
    main()
