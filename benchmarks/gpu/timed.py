"""The model of a shape with random weights, its rows, and a run of a stage that is timed step by step."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # https://huggingface.co/Qwen/Qwen2.5-7B/blob/main/config.json
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    },
    "tiny": {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    },
}  # fmt: skip
LENGTH = {"7b": 4096, "tiny": 256}
WORDS = ["the", "of", "and", "data", "model", "time", "which", "learning", "你好", "我们", "模型", "return", "="]


def make_inputs(scratch: Path, shape: str, device: str, num_rows: int) -> None:
    """Write the model, 15 GB in bf16 for 7b, and `rows.jsonl`: chats of 420 tokens on average, at 7B's length."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from llmtune.models.tiny import tiny_folder

    folder = scratch / shape
    scratch.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = Qwen2Config(**SHAPES[shape], tie_word_embeddings=False)
        with torch.device(device):
            dtype = torch.bfloat16 if device == "cuda" else torch.float32
            Qwen2ForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_folder() / name, folder / name)
    draw = random.Random(0)
    scale = LENGTH[shape] / 4096
    rows, pairs, prompts = [], [], []
    for _ in range(num_rows):
        words = max(int(draw.lognormvariate(5.0, 0.8) * scale), 3)
        question, response = (text(draw, words * part // 10) for part in (3, 7))
        rows.append({"query": question, "response": response})
        prompts.append({"query": text(draw, int(150 * scale)), "response": "1"})
        sizes = (int(600 * scale), int(120 * scale), int(120 * scale))
        query, chosen, rejected = (text(draw, size) for size in sizes)
        pairs.append({"query": query, "chosen": chosen, "rejected": rejected})
    for name, found in (("rows", rows), ("pairs", pairs), ("prompts", prompts)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (scratch / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(WORDS, k=max(words, 1)))


def run_flags(scratch: Path, shape: str, steps: int, rows: str = "rows") -> dict[str, Any]:
    """The flags that every run shares."""
    return {
        "model_type": "qwen2.5-7b-instruct", "model_id_or_path": str(scratch / shape), "template_type": "chatml",
        "dataset": [str(scratch / f"{rows}.jsonl")], "dataset_test_ratio": 0, "train_dataset_sample": -1,
        "max_length": LENGTH[shape], "gradient_accumulation_steps": 1, "max_steps": steps, "logging_steps": 1,
        "eval_strategy": "no", "save_strategy": "no", "report_to": ["none"], "output_dir": str(scratch / "output"),
        "lr_scheduler_type": "constant", "warmup_ratio": 0,
    }  # fmt: skip


def timed(stage: Any, args: Any, warmup: int) -> dict[str, Any]:
    """Run a stage, and return its rates after `warmup` steps, its peak memory beside the plan's, and its losses."""
    import torch

    from llmtune.training import throughput

    estimate, limit = estimated(args)
    if estimate > limit:
        return {"skipped": f"plan says {estimate / 2**30:.1f} GiB of {limit / 2**30:.1f} GiB"}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = resident()
    marks: list[tuple[float, int, float]] = []
    own = throughput.Throughput.on_step_end

    def on_step_end(self: Any, *given: Any, **named: Any) -> None:
        own(self, *given, **named)
        if on_gpu:
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), self.useful, self.done))

    throughput.Throughput.on_step_end = on_step_end  # type: ignore[method-assign]
    try:
        found = stage(args)
    finally:
        throughput.Throughput.on_step_end = own  # type: ignore[method-assign]
    records = [json.loads(line) for line in (found.output_dir / "logging.jsonl").read_text().splitlines()]
    first = min(warmup, len(marks) - 2)
    (start, useful, done), (end, all_useful, all_done) = marks[first], marks[-1]
    peak = torch.cuda.max_memory_allocated() if on_gpu else found.metrics["peak_memory_gib"] * 2**30 - before
    return {
        "tokens/s": (all_useful - useful) / (end - start), "tflops": (all_done - done) / (end - start) / 1e12,
        "seconds per step": (end - start) / (len(marks) - 1 - first), "peak": peak, "plan": estimate,
        "padding": found.metrics["padding_share"], "losses": [one["loss"] for one in records if "loss" in one],
        "peak_tflops": throughput._peak_tflops(), "folder": str(found.output_dir),
        "seconds": {key: value for one in records for key, value in one.items() if key.endswith("_seconds")},
    }  # fmt: skip


def estimated(args: Any) -> tuple[int, float]:
    """Bytes that the run takes by the estimate, and those that are there."""
    from llmtune.planning.plan import make_plan
    from llmtune.utils.logging import quiet_libraries

    quiet_libraries()
    plan = make_plan(args)
    return plan.estimate.total, plan.limit


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
