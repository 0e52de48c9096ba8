"""grpo against trl's GRPOTrainer on real prompts: steps per hour, seconds of writing and learning, memory.

    python benchmarks/grpo.py --tokenizer FOLDER --rows pairs.json [--steps 4] [--prompts 4] [--group 8]
        [--new_tokens 64] [--batch_size 8] [--repeats 3] [--vocabulary 151936] [--hidden 256] [--layers 6]
        [--model FOLDER] [--ways llmtune apart trl]

Each way runs in a process of its own, in turn: llmtune with each prompt computed once for its group, llmtune with each
response behind its own prompt in learning (apart), and trl without vLLM. All train LoRA of rank 8 on all linear layers
in fp32, with the same prompts, group size, sampling temperature and limit of tokens, one optimizer step for each batch
of responses, without a reference. The reward is the share of different tokens in a response. A random model writes on
until the limit; --model takes one whose responses end by themselves. Seconds are those of whole steps, after the first.
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

from pairs import Watch, make_model

WAYS = ("llmtune", "apart", "trl")
RATE = 1e-4
REWARD = """
def variety(completion_ids, **kwargs):
    return [len(set(ids)) / max(len(ids), 1) for ids in completion_ids]
"""


def write_prompts(args: argparse.Namespace, folder: Path, file: Path) -> None:
    """The first prompts that fit the limit, as messages."""
    from transformers import AutoTokenizer

    from llmtune.data.prompts import to_prompt

    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines: list[str] = []
    for row in json.loads(Path(args.rows).read_text(encoding="utf-8")):
        turns = to_prompt(row).conversation.turns[-1:]
        prompt = [{"role": turn.role, "content": turn.content} for turn in turns]
        size = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        if size <= args.max_prompt and len(lines) < args.steps * args.prompts:
            lines.append(json.dumps({"prompt": prompt}))
    file.write_text("\n".join(lines), encoding="utf-8")


def run_llmtune(args: argparse.Namespace, way: str) -> dict[str, float]:
    from llmtune import GrpoArguments, grpo

    work = Path(args.work)
    work.mkdir(exist_ok=True)
    (work / "reward.py").write_text(REWARD)
    made = GrpoArguments(
        model_type=args.model_type, model_id_or_path=args.model_folder, dataset=[args.rows_file],
        lora_target_modules=["ALL"], rewards=[f"{work / 'reward.py'}:variety"], num_generations=args.group,
        max_new_tokens=args.new_tokens, max_length=args.max_prompt + args.new_tokens, batch_size=args.batch_size,
        gradient_accumulation_steps=args.prompts * args.group // args.batch_size, max_steps=args.steps,
        learning_rate=RATE, logging_steps=1, dataset_test_ratio=0.0, eval_strategy="no", save_strategy="no",
        gradient_checkpointing="none", report_to=["none"], output_dir=args.work, train_dataset_sample=-1,
        share_prompt="true" if way == "llmtune" else "false", padding_free=way == "apart",
    )  # fmt: skip
    folder = grpo(made).output_dir
    logs = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines() if '"reward"' in line][1:]
    return {"writing": statistics.mean(log["rollout_seconds"] for log in logs)}


def run_trl(args: argparse.Namespace) -> dict[str, float]:
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    scope: dict[str, Any] = {}
    exec(REWARD, scope)
    seconds: list[float] = []
    generate = GRPOTrainer._generate

    def timed(self: Any, *parts: Any, **named: Any) -> Any:
        began = time.perf_counter()
        found = generate(self, *parts, **named)
        seconds.append(time.perf_counter() - began)
        return found

    GRPOTrainer._generate = timed
    settings = GRPOConfig(
        output_dir=args.work, per_device_train_batch_size=args.batch_size, max_steps=args.steps, learning_rate=RATE,
        gradient_accumulation_steps=args.prompts * args.group // args.batch_size, num_generations=args.group,
        max_completion_length=args.new_tokens, temperature=1.0, beta=0.0, loss_type="grpo", logging_steps=1,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, max_grad_norm=1.0, weight_decay=0.01,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(args.model_folder),
        reward_funcs=scope["variety"],
        args=settings,
        train_dataset=load_dataset("json", data_files=args.rows_file, split="train"),
        processing_class=AutoTokenizer.from_pretrained(args.model_folder),
        peft_config=LoraConfig(
            r=8, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    return {"writing": statistics.mean(seconds[1:])}


def child(args: argparse.Namespace) -> None:
    watch = Watch()
    parts = run_trl(args) if args.child == "trl" else run_llmtune(args, args.child)
    step = (watch.ends[-1] - watch.ends[0]) / (len(watch.ends) - 1)
    found = {
        "step": step,
        **parts,
        "learning": step - parts["writing"],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(args.result).write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of Qwen2.5's tokenizer, with its chat template")
    parser.add_argument("--rows", required=True, help="file of rows with prompts, in any shape that llmtune reads")
    parser.add_argument("--model", help="folder of a model; default: a random Qwen2")
    parser.add_argument("--model_type", default="qwen2.5-0.5b-instruct")
    for name, value in (("steps", 4), ("prompts", 4), ("group", 8), ("batch_size", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("new_tokens", 64), ("max_prompt", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("vocabulary", 151936), ("hidden", 256), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    for name in ("child", "model_folder", "rows_file", "work", "result"):
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
    model = Path(args.model) if args.model else folder / "model"
    if not args.model:
        make_model(args, model)
    rows = folder / "prompts.jsonl"
    write_prompts(args, model, rows)
    os.environ["LLMTUNE_CACHE"] = str(folder / "cache")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    for _ in range(args.repeats):
        for way in args.ways:
            result = folder / "result.json"
            words = [sys.executable, __file__, *sys.argv[1:], "--child", way, "--model_folder", str(model)]
            words += ["--rows_file", str(rows), "--work", str(folder / "work"), "--result", str(result)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr[-4000:]}")
            found[way].append(json.loads(result.read_text()))
    print(f"{args.prompts} x {args.group} responses of up to {args.new_tokens} tokens; {' '.join(sys.argv[1:])}")
    print(f"{'':<10}{'s a step':>10}{'writing':>9}{'learning':>10}{'peak MB':>9}")
    for way, runs in found.items():
        middle = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        parts = f"{middle['step']:>10.2f}{middle['writing']:>9.2f}{middle['learning']:>10.2f}"
        print(f"{way:<10}{parts}{middle['peak']:>9,.0f}")
    for one, other, name in (
        ("llmtune", "trl", "step"),
        ("llmtune", "trl", "writing"),
        ("llmtune", "apart", "learning"),
    ):
        if one in found and other in found:
            ratios = [b[name] / a[name] for a, b in zip(found[one], found[other], strict=True)]
            print(f"{one}, {name}: {statistics.median(ratios):.2f} times as fast as {other}")


if __name__ == "__main__":
    main()
