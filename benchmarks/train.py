"""llmtune against a plain transformers Trainer and trl's SFTTrainer: speed, CPU, memory, time to the first step.

    python benchmarks/train.py                                      the embedded model and data, a minute
    python benchmarks/train.py --tokenizer FOLDER --rows FILE       a vocabulary of real size and your rows
        [--vocabulary 151936] [--hidden 256] [--layers 4] [--steps 8] [--batch_size 4] [--max_length 1024]
        [--attn_impl sdpa]

Each way runs in a process of its own, in turn, and again, `--repeats` times; medians and ratios are printed. All train
LoRA of rank 8 on all linear layers in fp32 on the same rows, each with a system prompt, as one chat template writes
them; responses and their end are trainable. No evaluation, no checkpoint, no gradient checkpointing (trl's default is
on). The data is printed: rows, tokens and trainable tokens of the whole set, and the loss of the first step.

Packed: llmtune and trl fill sequences of max_length; transformers has no packing, so its rows are laid end to end
without padding (DataCollatorWithFlattening), a batch at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

WAYS = ("llmtune", "transformers", "trl")
SYSTEM = "You are a helpful assistant."
LEARNING_RATE = 1e-4
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)


class Watch:
    """Looks at every Trainer from outside: tokens that are no padding, and when each step ends."""

    def __init__(self) -> None:
        from transformers import Trainer
        from transformers.trainer_callback import CallbackHandler

        self.ends: list[float] = []
        self.useful: list[int] = [0]
        self.losses: list[float] = []
        own_step, own_end, own_log = Trainer.training_step, CallbackHandler.on_step_end, CallbackHandler.on_log

        def step(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.useful[-1] += useful_tokens(inputs)
            return own_step(trainer, model, inputs, *args, **kwargs)

        def end(handler: Any, *args: Any, **kwargs: Any) -> Any:
            self.ends.append(time.time())
            self.useful.append(0)
            return own_end(handler, *args, **kwargs)

        def log(handler: Any, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> Any:
            self.losses += [logs["loss"]] if "loss" in logs else []
            return own_log(handler, args, state, control, logs, **kwargs)

        Trainer.training_step, CallbackHandler.on_step_end, CallbackHandler.on_log = step, end, log

    def found(self, began: float, data: dict[str, int]) -> dict[str, Any]:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return data | {
            "tokens/s": sum(self.useful[1 : len(self.ends)]) / (self.ends[-1] - self.ends[0]),
            "CPU-s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            "peak MB": own.ru_maxrss / 1024,
            "first step s": self.ends[0] - began,
            "first loss": self.losses[0],
            "tokens trained": sum(self.useful),
        }


def useful_tokens(batch: dict[str, Any]) -> int:
    if batch.get("attention_mask") is not None and batch["attention_mask"].ndim == 2:
        return int(batch["attention_mask"].sum())
    if "position_ids" not in batch:
        return batch["input_ids"].numel()
    from llmtune.samples.collate import num_useful

    return int(num_useful({"position_ids": batch["position_ids"]}))


def run_llmtune(options: argparse.Namespace) -> dict[str, int]:
    from llmtune import SftArguments, sft
    from llmtune.stages import sft as module

    seen: dict[str, int] = {}
    own = module.prepare

    def prepare(*args: Any, **kwargs: Any) -> Any:
        prepared = own(*args, **kwargs)
        report = prepared.train_tokens.report
        seen.update(rows=report.num_samples, tokens=report.num_tokens, learned=report.num_trainable)
        return prepared

    module.prepare = prepare
    sft(
        SftArguments(
            model_type=options.model_type, model_id_or_path=options.model, template_type=options.template,
            dataset=[options.rows], dataset_test_ratio=0, train_dataset_sample=-1, lora_target_modules=["ALL"],
            lora_alpha=16, lora_dropout_p=0, batch_size=1 if options.packed else options.batch_size,
            gradient_accumulation_steps=1, max_steps=options.steps, max_length=options.max_length,
            packing=options.packed, learning_rate=LEARNING_RATE, logging_steps=1, eval_strategy="no",
            save_strategy="no", report_to=["none"], output_dir=options.output, loss_on="all",
            gradient_checkpointing="none", attn_impl=options.attn_impl,
        )
    )  # fmt: skip
    return seen


def common(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": options.output, "per_device_train_batch_size": options.batch_size, "max_steps": options.steps,
        "learning_rate": LEARNING_RATE, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 0.01, "disable_tqdm": True, "bf16": False,
        "activation_checkpointing": False,
    }  # fmt: skip


def model_and_tokenizer(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.chat_template = MARKED
    return AutoModelForCausalLM.from_pretrained(options.model), tokenizer


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def run_transformers(options: argparse.Namespace) -> dict[str, int]:
    from datasets import load_dataset
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

    model, tokenizer = model_and_tokenizer(options)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = found["input_ids"], found["assistant_masks"]
        labels = [token if learned else -100 for token, learned in zip(ids, mask, strict=True)]
        return {"input_ids": ids[: options.max_length], "labels": labels[: options.max_length]}

    rows = load_dataset("json", data_files=options.rows, split="train", cache_dir=options.output)
    rows = rows.map(encode, remove_columns=rows.column_names)
    collator = DataCollatorWithFlattening() if options.packed else DataCollatorForSeq2Seq(tokenizer)
    Trainer(
        model=get_peft_model(model, lora()),
        args=TrainingArguments(**common(options)),
        train_dataset=rows,
        data_collator=collator,
    ).train()
    return _counts(rows)


def run_trl(options: argparse.Namespace) -> dict[str, int]:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = model_and_tokenizer(options)
    rows = load_dataset("json", data_files=options.rows, split="train", cache_dir=options.output)
    settings = common(options) | {"max_length": options.max_length, "packing": options.packed}
    if options.packed:
        settings["per_device_train_batch_size"] = 1
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings, assistant_only_loss=True),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer.train()
    return _counts(trainer.train_dataset)


def _counts(rows: Any) -> dict[str, int]:
    """Of encoded rows, or of packs, whose number is another one."""
    tokens = sum(len(row["input_ids"]) for row in rows)
    if "labels" in rows.column_names:
        learned = sum(sum(label != -100 for label in row["labels"]) for row in rows)
    else:
        learned = sum(sum(row["assistant_masks"]) for row in rows) if "assistant_masks" in rows.column_names else 0
    return {"rows": len(rows), "tokens": tokens, "learned": learned}


def measure(options: argparse.Namespace) -> None:
    began = options.began
    watch = Watch()
    data = {"llmtune": run_llmtune, "transformers": run_transformers, "trl": run_trl}[options.way](options)
    print("\nRESULT " + json.dumps(watch.found(began, data)))


# What is trained, and on what


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Make the model's folder and the rows, and say what to call them."""
    from llmtune.data.families.embedded_turns import tiny_qa
    from llmtune.data.formats import to_conversation
    from llmtune.models.tiny import tiny_folder

    if options.tokenizer:
        model = make_model(options, folder / "model")
        rows = read_rows(Path(options.rows))
    else:
        model = tiny_folder()
        rows = tiny_qa()[0]
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in rows[: options.num_rows]:
            turns = [turn for turn in to_conversation(row).messages if turn.role in ("user", "assistant")]
            messages = [{"role": "system", "content": SYSTEM}]
            messages += [{"role": turn.role, "content": turn.content} for turn in turns]
            out.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    model_type = "qwen2.5-0.5b-instruct" if options.tokenizer else "llmtune-tiny"
    return {"model": str(model), "rows": str(file), "model_type": model_type, "template": "chatml"}


def read_rows(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def make_model(options: argparse.Namespace, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=options.vocabulary, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers, num_attention_heads=options.hidden // 32,
        num_key_value_heads=options.hidden // 64, tie_word_embeddings=True, max_position_embeddings=32768,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(folder)
    return folder


def compare(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = prepare(options, folder)
        print(f"{date.today()}, {os.cpu_count()} cores, {platform.machine()}, no GPU; {' '.join(sys.argv[1:])}")
        for packed in (False, True):
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
            for repeat in range(options.repeats):
                for way in options.ways:
                    found[way].append(one_run(options, given, folder / f"{way}-{packed}-{repeat}", way, packed))
            show("packed" if packed else "padded", found)


def one_run(options: argparse.Namespace, given: dict[str, str], output: Path, way: str, packed: bool) -> dict[str, Any]:
    flags = [f"--{key}={value}" for key, value in given.items()] + [f"--output={output}", f"--way={way}"]
    flags += ["--packed"] if packed else []
    flags += [f"--{key}={getattr(options, key)}" for key in ("steps", "batch_size", "max_length")]
    flags += [f"--attn_impl={options.attn_impl}"] if options.attn_impl else []
    environment = os.environ | {"LLMTUNE_CACHE": str(output / "cache"), "HF_HUB_OFFLINE": "1", "LLMTUNE_OFFLINE": "1"}
    flags.append(f"--began={time.time()}")
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.rsplit("RESULT ", 1)[1])


def show(title: str, found: dict[str, list[dict[str, Any]]]) -> None:
    heads = "tokens/s   CPU-s  peak MB  first step s   first loss  rows    tokens   learned  trained"
    print(f"\n{title:<13}  {heads}")
    middle = {way: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for way, runs in found.items()}
    for way, one in middle.items():
        line = f"{way:<13} {one['tokens/s']:>9,.0f} {one['CPU-s']:>7.1f} {one['peak MB']:>8,.0f}"
        line += f" {one['first step s']:>13.1f} {one['first loss']:>12.4f} {one['rows']:>5,.0f}"
        print(f"{line} {one['tokens']:>9,.0f} {one['learned']:>9,.0f} {one['tokens trained']:>8,.0f}")
    if "llmtune" not in middle:
        return
    for way in (way for way in middle if way != "llmtune"):
        ratios = {
            key: statistics.median(a[key] / b[key] for a, b in zip(found["llmtune"], found[way], strict=True))
            for key in ("tokens/s", "CPU-s", "peak MB", "first step s")
        }
        print(
            f"llmtune : {way}  {ratios['tokens/s']:.2f} times the tokens/s, {ratios['CPU-s']:.2f} the CPU-seconds, "
            f"{ratios['peak MB']:.2f} the memory, {ratios['first step s']:.2f} the time to the first step"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="folder of a ChatML tokenizer, Qwen2.5's say")
    parser.add_argument("--rows", help="file of rows in any shape that llmtune reads; needed with --tokenizer")
    parser.add_argument("--num_rows", type=int, default=400)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--attn_impl", help="llmtune's flag; default: its choice")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    for name in ("way", "model", "model_type", "template", "output"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--packed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
    elif bool(options.tokenizer) != bool(options.rows):
        parser.error("give both --tokenizer and --rows, or neither")
    else:
        compare(options)


if __name__ == "__main__":
    main()
