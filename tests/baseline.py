"""What llmtune computes, written down before a refactoring and compared after it, bit for bit.

    python -m tests.baseline record before.json     at the commit before
    python -m tests.baseline record after.json      at the commit after
    python -m tests.baseline compare before.json after.json

Public names and flags alone are used, so that the same file runs on both commits (PYTHONPATH says on which). Recorded:
losses, evaluations and the hash of the saved weights of 20 steps for five models under ten settings; tokens and labels
of 200 rows under every template; flags and defaults of every command; files of a run folder; generations of infer and
serve. What a setting refuses is recorded as the class of its error.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

STEPS = 20
MODELS = ("llmtune-tiny", "qwen2", "gemma2", "mixtral", "qwen2-vl")
TOGETHER = {"nproc": 2, "gradient_accumulation_steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"sft_type": "full"},
    "dora": {"use_dora": True},
    "qlora nf4": {"quantization_bit": 4},
    "packed": {"packing": True, "max_length": 128},
    "padding-free": {"padding_free": True},
    "streamed": {"streaming": True, "eval_strategy": "no"},
    "two processes": TOGETHER,
    "zero2": TOGETHER | {"deepspeed_config_path": "zero2"},
    "fsdp2": TOGETHER | {"fsdp": True},
}
RUN: dict[str, Any] = {
    "train_dataset_sample": -1, "batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 1e-3,
    "logging_steps": 1, "eval_steps": 10, "save_steps": 20, "max_steps": STEPS, "dtype": "fp32", "seed": 7,
    "predict_with_generate": False, "val_dataset_sample": 8,
}  # fmt: skip
COMMANDS = (
    *("sft", "infer", "eval", "serve", "web", "merge", "export"),
    *("push", "check", "plan", "list", "show", "launch"),
)
SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1, "max_position_embeddings": 512,
}  # fmt: skip
QUESTIONS = ("How much is 2 plus 3?", "What is the capital of France?", "你好")


# Models


def make_models(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the folders of the small models; name -> the flags that choose them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, MixtralConfig, Qwen2Config

    from llmtune.models.tiny import tiny_folder

    from .tiny_vision import KEYS, make_vision

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    configs = {
        "qwen2": (Qwen2Config(**SMALL, **ids), "qwen2.5-0.5b-instruct"),
        "gemma2": (Gemma2Config(**SMALL, **ids, sliding_window=32), "gemma2-2b-it"),
        "mixtral": (MixtralConfig(**SMALL, **ids, num_local_experts=4), "mixtral-8x7b-instruct"),
    }
    flags: dict[str, dict[str, Any]] = {"llmtune-tiny": {"model_type": "llmtune-tiny"}}
    for name, (config, key) in configs.items():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        flags[name] = {"model_type": _key(key), "model_id_or_path": str(folder / name), "template_type": "chatml"}
    make_vision("qwen2-vl", folder / "qwen2-vl")
    flags["qwen2-vl"] = {"model_type": KEYS["qwen2-vl"], "model_id_or_path": str(folder / "qwen2-vl")}
    return flags


def _key(start: str) -> str:
    from llmtune import MODEL_MAPPING

    return start if start in MODEL_MAPPING else next(key for key in MODEL_MAPPING if key.startswith(start[:6]))


# Training


def train(folder: Path, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Losses and evaluations by step, the hash of the weights, the files of the run's folder."""
    values = RUN | {"dataset": ["tiny-qa#400"], "output_dir": str(folder)} | model | settings
    status, said = _in_processes(values) if "nproc" in values else _here(values)
    runs = sorted(folder.glob("*/v*"))
    if status or not runs:
        return {"status": status, "said": said}
    run = runs[-1]
    records = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    weights = hashlib.blake2b(digest_size=16)
    for file in sorted((run / f"checkpoint-{STEPS}").glob("*.safetensors")):
        weights.update(file.read_bytes())
    return {
        "status": 0,
        "losses": [repr(record["loss"]) for record in records if "loss" in record],
        "evaluations": [repr(record["eval_loss"]) for record in records if "eval_loss" in record],
        "weights": weights.hexdigest(),
        "files": sorted(
            str(file.relative_to(run)) for file in run.rglob("*") if "runs" not in file.relative_to(run).parts[:-1]
        ),
    }


def _here(values: dict[str, Any]) -> tuple[int, str]:
    from llmtune import LlmtuneError, SftArguments, sft

    try:
        sft(SftArguments(**values))
    except LlmtuneError as err:
        return 1, type(err).__name__
    return 0, ""


def _in_processes(values: dict[str, Any]) -> tuple[int, str]:
    words = [word for name, value in values.items() for word in (f"--{name}", *_words(value))]
    command = [sys.executable, "-m", "llmtune", "sft", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    return done.returncode, done.stderr.strip().splitlines()[-1] if done.returncode else ""


def _words(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "LLMTUNE_OFFLINE": "1", "LLMTUNE_PLUGINS": ""}


# Templates


def rows(count: int = 200) -> list[dict[str, Any]]:
    """Conversations of one to four turns, with and without system prompt, thought and odd contents; always the same."""
    draw = random.Random(7)
    texts = ["Hi", " blanks ", "\nnew line", "你好，世界", "🙂", "a {{QUERY}} b", "<|im_end|>", "1 + 1 = 2", "x" * 50]
    made = []
    for number in range(count):
        messages: list[dict[str, Any]] = []
        if draw.random() < 0.5:
            messages.append({"role": "system", "content": draw.choice(texts)})
        for _ in range(draw.randint(1, 4)):
            messages.append({"role": "user", "content": f"{draw.choice(texts)} {number}"})
            answer = {"role": "assistant", "content": draw.choice(texts)}
            if draw.random() < 0.05:
                answer["reasoning_content"] = draw.choice(texts)
            messages.append(answer)
        made.append({"messages": messages})
    return made


def encoded() -> dict[str, Any]:
    """Template -> hash of all tokens and labels, and the classes of what it refuses."""
    from transformers import AutoTokenizer

    from llmtune import TEMPLATE_MAPPING, get_template
    from llmtune.errors import LlmtuneError
    from llmtune.models.tiny import tiny_folder

    results = {}
    for key in TEMPLATE_MAPPING:
        tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(str(tiny_folder())))
        tokenizer.bos_token = "<|endoftext|>"
        digest, refused = hashlib.blake2b(digest_size=16), 0
        try:
            template = get_template(key, tokenizer, max_length=256)
        except LlmtuneError as err:
            results[key] = type(err).__name__
            continue
        for row in rows():
            try:
                samples = template.encode_all(row)
            except LlmtuneError:
                refused += 1
                continue
            for sample in samples:
                digest.update(repr([list(map(int, sample[name])) for name in ("input_ids", "labels")]).encode())
        results[key] = f"{digest.hexdigest()}, {refused} refused"
    return results


# Doors


def flags_of(command: str) -> dict[str, str]:
    """Flag -> its default, as `--help` shows it."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtune", command, "--help"],
        capture_output=True,
        text=True,
        env=_environment() | {"COLUMNS": "10000"},
    )
    flags: dict[str, str] = {}
    name = ""
    for line in done.stdout.splitlines():
        if start := re.match(r"  (--[a-z_0-9-]+|-[a-z], --[a-z]+)", line):
            name = start[1]
            flags[name] = ""
        if default := re.search(r"\[([^\[\]|]*)\]\s*$", line):
            flags[name] = default[1]
    return flags


def generations(folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """What infer and serve sample from a checkpoint, by a seed."""
    train(folder, model, {"max_steps": 20})
    checkpoint = str(next(folder.glob("*/v*/checkpoint-20")))
    from llmtune import InferArguments, infer

    with contextlib.redirect_stdout(io.StringIO()):
        results = infer(
            InferArguments(
                ckpt_dir=checkpoint, do_sample=True,
                temperature=1.0,
                seed=5, max_new_tokens=16, show_dataset_sample=5, infer_batch_size=2,
                result_dir=str(folder),
            )
        )  # fmt: skip
    return {"infer": [result["response"] for result in results], "serve": _served(checkpoint)}


def _served(checkpoint: str) -> list[str]:
    port = 20000 + os.getpid() % 20000
    words = ["serve", "--ckpt_dir", checkpoint, "--port", str(port)]
    command, quiet = [sys.executable, "-m", "llmtune", *words], subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=_environment())
    try:
        return [_ask(port, question) for question in QUESTIONS]
    finally:
        server.kill()
        server.wait()


def _ask(port: int, question: str) -> str:
    base = f"http://127.0.0.1:{port}/v1"
    body = {"model": _model(base), "messages": [{"role": "user", "content": question}], "temperature": 1}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{base}/chat/completions", json.dumps(body | {"max_tokens": 16, "seed": 5}).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.loads(answer.read())["choices"][0]["message"]["content"])


def _model(base: str) -> str:
    """The id of what is served, once the server is up."""
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/models", timeout=5) as answer:
            return str(json.loads(answer.read())["data"][0]["id"])
        time.sleep(0.2)
    raise TimeoutError("the server did not start")


# Record, compare


def record(only: str = "") -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LLMTUNE_CACHE"] = str(folder / "cache")
        os.environ |= {"LLMTUNE_OFFLINE": "1", "LLMTUNE_PLUGINS": ""}
        models = make_models(folder)
        for title, make in _parts(folder, models):
            if only in title:
                results[title] = make()
                sys.stderr.write(f"{title}\n")
    return results


def _parts(folder: Path, models: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "templates", encoded
    for command in COMMANDS:
        yield f"help {command}", partial(flags_of, command)
    yield "generations", partial(generations, folder / "answers", models["llmtune-tiny"])
    for model in MODELS:
        for title, settings in SETTINGS.items():
            place = folder / f"{model} {title}".replace(" ", "-")
            yield f"train {model}, {title}", partial(train, place, models[model], settings)


def compare(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two records differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from compare(before.get(name), after.get(name), f"{place} / {name}" if place else name)
    elif before != after:
        yield f"{place}: {str(before)[:200]} -> {str(after)[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="parts whose title holds this text")
    options = parser.parse_args()
    if options.what == "record":
        options.files[0].write_text(json.dumps(record(options.only), indent=1, ensure_ascii=False))
        return 0
    before, after = (json.loads(file.read_text()) for file in options.files)
    differences = list(compare(before, after))
    sys.stdout.write("".join(f"{line}\n" for line in differences) or f"Equal: {len(before)} parts.\n")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
