"""The parts of `acceptance.py`: each returns its figures, and `ok`, whether they are what they have to be."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from timed import LENGTH, run_flags, timed

WARMUP = 3
PACKED = {"packing": True, "batch_size": 1}
LORA = PACKED | {"sft_type": "lora", "lora_rank": 16, "lora_target_modules": ["ALL"]}
FULL = PACKED | {"sft_type": "full", "pure_bf16": True, "learning_rate": 1e-5}
GOAL_TOKENS = 18_000
"""Useful tokens/s of LoRA at 4096 on an H200: 58 % MFU, what a well-fused bf16 stack can reach."""
GOAL_FP8 = 20_000
"""The same with the base in fp8: more than the matmuls of bf16 would allow at their peak."""
BESIDE_BF16 = 0.05
"""How far the losses of a base in fp8 may be from those in bf16, step by step; both runs are over the same rows."""
PLAN = 0.15
"""How far the peak may be from the plan's estimate."""
SHARED = 1.8
"""Times as fast as without a shared prompt, dpo should be."""

Found = dict[str, Any]


def doctor(options: Any) -> Found:
    """Versions and devices, as `llmtune env` finds them."""
    from llmtune.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(["env", "--json", "true"])
    found = json.loads(said.getvalue())
    return {"ok": status == 0 and (options.device == "cpu" or bool(found.get("gpus", found))), "env": found}


def embedded(options: Any) -> Found:
    """The embedded model learns: LoRA, bf16 on a GPU, without padding."""
    from llmtune import SftArguments, sft

    dtype = "fp32" if options.device == "cpu" else "bf16"
    args = SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa#200"], dtype=dtype, batch_size=4, gradient_accumulation_steps=1,
        max_steps=10, logging_steps=1, learning_rate=1e-2, lora_target_modules=["ALL"], eval_strategy="no",
        save_strategy="no", report_to=["none"], output_dir=str(options.scratch / "output"),
    )  # fmt: skip
    result = sft(args)
    losses = losses_of(result.output_dir)
    report = (result.output_dir / "report.md").read_text(encoding="utf-8")
    chosen = [line.strip("- ") for line in report.splitlines() if "Attention" in line or "Padding" in line]
    return {"ok": losses[-1] < losses[0] and result.metrics["padding_share"] == 0, "losses": losses, "chosen": chosen}


def attention(options: Any) -> Found:
    """Packed rows by SDPA's mask, varlen and FlashAttention: loss and gradients beside rows alone, in fp32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from llmtune.models.packed_attention import VARLEN, register_varlen
    from llmtune.models.supervised_loss import install_supervised_loss
    from llmtune.samples.collate import PackingCollator, PaddingCollator

    register_varlen()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    rows = [torch.randint(3, 1000, (size,)).numpy() for size in (130, 17, 301, 64)]
    samples = [{"input_ids": row, "labels": row} for row in rows]

    def gradients(dtype: Any, name: str | None) -> tuple[float, Any]:
        torch.manual_seed(1)
        model = Qwen2ForCausalLM(config).to(options.device, dtype)
        install_supervised_loss(model)
        model.set_attn_implementation(name or "sdpa")
        flat = PackingCollator(0, flat=True, with_segments=name not in (None, "sdpa"))
        batches = [PaddingCollator(0)([one]) for one in samples] if name is None else [flat(samples)]
        count = sum(len(row) - 1 for row in rows)
        total = 0.0
        for batch in batches:
            moved = {key: value.to(options.device) if hasattr(value, "to") else value for key, value in batch.items()}
            loss = model(**moved, num_items_in_batch=count).loss
            loss.backward()
            total += float(loss.detach())
        parts = [one.grad.flatten().float() for one in model.parameters() if one.grad is not None]
        return total, torch.cat(parts)

    loss, wanted = gradients(torch.float32, None)
    found: Found = {}
    ok = True
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 1e-3)):
        rounding = 0.0  # of weights and matmuls, as SDPA has it too
        for name in ("sdpa", VARLEN, "flash_attention_2"):
            key = f"{name} {str(dtype).removeprefix('torch.')}"
            try:
                ours, got = gradients(dtype, name)
            except (ImportError, ValueError, RuntimeError) as err:
                found[key] = f"not here: {str(err).splitlines()[0][:100]}"
                continue
            apart = float((got - wanted).norm() / wanted.norm())
            found[key] = {"loss apart": abs(ours - loss) / loss, "gradients apart": apart}
            if name == "sdpa" and dtype is torch.bfloat16:
                rounding = apart
            ok = ok and apart < max(limit, 1.2 * rounding) and abs(ours - loss) / loss < limit
    return {"ok": ok, **found}


def measured(options: Any, flags: Found, *, reference: bool = False) -> Found:
    """A timed sft run of the shape."""
    from llmtune import SftArguments, sft
    from llmtune.training import build

    own = build.install_supervised_loss
    if reference:  # plain transformers: its own forward, and cross entropy of all logits
        build.install_supervised_loss = lambda _: None
    try:
        args = SftArguments(**(run_flags(options.scratch, options.shape, options.steps) | flags))
        found = timed(sft, args, WARMUP)
    finally:
        build.install_supervised_loss = own
    if "skipped" in found:
        return found
    within = options.device == "cpu" or reference or abs(found["plan"] / found["peak"] - 1) <= PLAN
    mfu = found["tflops"] / found["peak_tflops"] if found["peak_tflops"] else None
    return {"ok": within and found["losses"][-1] < 20, "mfu": mfu, **found}


def lora(options: Any) -> Found:
    return with_goal(options, measured(options, LORA), GOAL_TOKENS)


def with_goal(options: Any, found: Found, goal: int) -> Found:
    return {**found, "goal": goal, "reached": options.shape != "7b" or found.get("tokens/s", 0) >= goal}


def fp8(options: Any, *, torch_compile: bool = False) -> Found:
    """LoRA on a base in fp8, its losses beside those of the part `lora`, where it has run."""
    flags = LORA | {"fp8_base": True, "torch_compile": torch_compile}
    found = with_goal(options, measured(options, flags), GOAL_FP8)
    done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    theirs = done.get("lora", {}).get("losses")
    if not theirs or not found.get("losses"):
        return found
    apart = max(abs(ours - one) for ours, one in zip(found["losses"], theirs, strict=False))
    return {**found, "ok": found["ok"] and apart < BESIDE_BF16, "losses apart": apart}


def reference(options: Any) -> Found:
    return measured(options, LORA, reference=True)


def full(options: Any) -> Found:
    return measured(options, FULL)


def qlora(options: Any) -> Found:
    return measured(options, LORA | {"quantization_bit": 4})


def liger(options: Any) -> Found:
    return measured(options, LORA | {"use_liger": True})


def compiled(options: Any) -> Found:
    return measured(options, LORA | {"torch_compile": True})


def dpo_shared(options: Any) -> Found:
    """Seconds per step with each prompt computed once, and with the prompt of each response."""
    from llmtune import DpoArguments, dpo

    found: Found = {}
    for share in ("true", "false"):
        flags = run_flags(options.scratch, options.shape, options.steps, "pairs")
        flags |= {"sft_type": "lora", "lora_rank": 16, "lora_target_modules": ["ALL"], "batch_size": 2}
        one = timed(dpo, DpoArguments(**flags, share_prompt=share), WARMUP)
        if "skipped" in one:
            return one
        found[share] = {name: one[name] for name in ("seconds per step", "peak", "plan", "losses")}
    ratio = found["false"]["seconds per step"] / found["true"]["seconds per step"]
    apart = max(abs(a - b) for a, b in zip(found["true"]["losses"], found["false"]["losses"], strict=True))
    reached = ratio >= SHARED or options.shape != "7b"
    return {"ok": apart < 2e-2, "times as fast": ratio, "reached": reached, "losses apart": apart, **found}


def grpo_step(options: Any) -> Found:
    """The seconds of a step of grpo: writing, scoring, log-probabilities, all of it."""
    from llmtune import GrpoArguments, grpo

    (options.scratch / "reward.py").write_text(
        "def variety(completions, **kwargs):\n    return [len(set(text)) / (len(text) + 1) for text in completions]\n"
    )
    small = options.shape != "7b"
    flags = run_flags(options.scratch, options.shape, max(options.steps // 2, 2), "prompts") | {
        "sft_type": "lora", "lora_rank": 16, "lora_target_modules": ["ALL"], "num_generations": 8,
        "batch_size": 8, "gradient_accumulation_steps": 1 if small else 8, "max_new_tokens": 8 if small else 256,
        "rewards": [f"{options.scratch / 'reward.py'}:variety"],
    }  # fmt: skip
    found = timed(grpo, GrpoArguments(**flags), 0)
    return found if "skipped" in found else {"ok": all(map(finite, found["losses"])), **found}


def serve(options: Any) -> Found:
    """Tokens/s of `llmtune serve` for 1, 8 and 64 clients at once."""
    port = free_port()
    argv = ["serve", "--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(options.scratch / options.shape)]
    argv += ["--template_type", "chatml", "--port", str(port), "--max_batch_size", "64"]
    log = (options.scratch / "serve.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "llmtune", *argv], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    tokens = 128 if options.shape == "7b" else 8
    try:
        model = wait_for_model(url, server)
        ask(url, model, tokens)
        found = {}
        for clients in (1, 8, 64) if options.shape == "7b" else (1, 4):
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                counts = list(pool.map(lambda _: ask(url, model, tokens), range(clients)))
            found[f"{clients} clients"] = sum(counts) / (time.perf_counter() - began)
    finally:
        server.terminate()
        server.wait(30)
        log.close()
    return {"ok": True, **found}


def resume(options: Any) -> Found:
    """Six steps at once, and three that are resumed: the same losses, up to the kernels' own order of sums."""
    from llmtune import SftArguments, sft

    flags = run_flags(options.scratch, options.shape, 6) | LORA | {"save_strategy": "steps", "save_steps": 3}
    flags |= {"save_total_limit": -1, "lora_dropout_p": 0.05}
    whole = sft(SftArguments(**flags)).output_dir
    again = sft(SftArguments(**flags, resume_from_checkpoint=str(whole / "checkpoint-3"))).output_dir
    ours, theirs = losses_of(again)[-3:], losses_of(whole)[3:6]
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return {"ok": apart < (1e-2 if options.device == "cuda" else 1e-9), "apart": apart, "losses": ours}


def one_process_group(options: Any) -> Found:
    """A process group of one, as torchrun makes it: NCCL on a GPU, gloo on a CPU."""
    argv = ["sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#40", "--max_steps", "2", "--report_to", "none"]
    argv += ["--gradient_accumulation_steps", "1", "--output_dir", str(options.scratch / "output")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "llmtune"]
    done = subprocess.run([*launch, *argv], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "istributed" in line]
    return {"ok": done.returncode == 0, "said": said[:5], "end": done.stderr.splitlines()[-2:]}


def finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def losses_of(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "logging.jsonl").read_text(encoding="utf-8").splitlines())
    return [one["loss"] for one in records if "loss" in one]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_model(url: str, server: subprocess.Popen[bytes]) -> str:
    while server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
            return str(json.load(answer)["data"][0]["id"])
        time.sleep(0.2)
    raise RuntimeError("the server ended before it answered: serve.log")


def ask(url: str, model: str, tokens: int) -> int:
    """Ask one question; returns the tokens of the response."""
    body = {"model": model, "max_tokens": tokens, "messages": [{"role": "user", "content": "the data of time " * 30}]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


PARTS: dict[str, tuple[Any, int, str]] = {
    "doctor": (doctor, 40, "import, versions, devices"),
    "embedded": (embedded, 40, "LoRA of the embedded model"),
    "attention": (attention, 40, "packed rows by SDPA, varlen and FlashAttention beside rows alone"),
    "lora": (lora, 75, f"LoRA, rank 16, packed at {LENGTH['7b']}"),
    "fp8": (fp8, 90, "... with --fp8_base true"),
    "reference": (reference, 75, "... by plain transformers' forward and cross entropy"),
    "full": (full, 90, "full fine-tuning, --pure_bf16"),
    "qlora": (qlora, 75, "QLoRA, nf4"),
    "dpo": (dpo_shared, 90, "dpo with a shared prompt, and without"),
    "serve": (serve, 75, "tokens/s of the server"),
    "grpo": (grpo_step, 90, "grpo, a step in its parts"),
    "resume": (resume, 75, "a resumed run"),
    "process group": (one_process_group, 40, "one process of a process group"),
    "liger": (liger, 75, "LoRA with Liger's kernels"),
    "compile": (compiled, 120, "LoRA, layers compiled"),
    "fp8 compile": (partial(fp8, torch_compile=True), 120, "... with --fp8_base true"),
}
"""Name -> (work, seconds that it may take, what it shows), in order of worth."""
