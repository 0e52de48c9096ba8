"""A short run pays for what it uses: in a process of its own, what it imported and the memory that it needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BEFORE_THE_FIRST_STEP = ("trl", "modelscope", "PIL.ImageFont", "rouge_score", "nltk", "deepspeed", "mlflow", "tiktoken")
OPTIONAL = (
    *("bitsandbytes", "gptqmodel", "torchao", "optimum", "deepspeed", "liger_kernel", "kernels", "triton", "trl"),
    *("scipy", "sklearn", "matplotlib", "torchvision", "gguf", "numba", "logbar", "IPython"),
    *("boto3", "botocore", "mlflow", "wandb", "swanlab", "trackio", "nicegui", "streamlit", "fastapi", "lm_eval"),
    *("modelscope", "tiktoken", "openai", "vllm", "ray", "nltk", "rouge_score", "math_verify", "optuna"),
)
"""Imported by one of our libraries where they are installed, or by ours where they are used."""
MOST_MIB = 600
"""Of 561 to 563; it was 691 when all packages were imported."""

SCRIPT = """
import json, sys
from llmtune.cli import stages
from llmtune.cli.main import main

def loaded(names):
    return sorted({name for name in names if any(f"{module}.".startswith(f"{name}.") for module in sys.modules)})

def first_step(self, *_, **__):
    found.setdefault("early", loaded(BEFORE))
    self.steps += 1

def trained(*words):
    found["status"] = main(["sft", *MODEL, "--max_steps", "5", *words])

def watched(reference, what):  # only now: the command itself is to import the libraries
    function = resolve(reference, what=what)
    from llmtune.training import callbacks
    callbacks.Throughput.on_step_end = first_step
    return function

resolve, stages.resolve_reference, found = stages.resolve_reference, watched, {}
trained()
found["late"] = loaded(OPTIONAL)
found["drew"] = loaded(["PIL.ImageFont"])
if sys.platform == "linux":  # of this program: getrusage counts what its parent had before it was started
    lines = open("/proc/self/status").read().splitlines()
    found["mib"] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
if "bitsandbytes" in INSTALLED:
    from llmtune.training import stage
    models = []
    build = stage.build_model
    stage.build_model = lambda *given: models.append(build(*given)) or models[0]
    trained("--quantization_bit", "4", "--split_dataset_ratio", "0")
    kinds = {type(module) for module in models[0].modules()}
    found["layers"] = sorted({kind.__module__ for kind in kinds if "4bit" in kind.__name__})
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a small model with a real vocabulary; of the embedded one where there are no assets."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    try:
        source = request.getfixturevalue("assets") / "tokenizers/qwen2_5"
    except pytest.skip.Exception:
        return ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa"]
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=151_936, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return ["--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(folder), "--dataset", "tiny-qa"]


@pytest.mark.slow
def test_short_run_imports_nothing_optional(model: list[str], tmp_path: Path) -> None:
    """And what is then asked for works in the same process: QLoRA takes bitsandbytes' layers."""
    from importlib.util import find_spec

    installed = [name for name in OPTIONAL if find_spec(name) is not None]
    words = [*model, "--batch_size", "2", "--gradient_accumulation_steps", "1", "--output_dir", str(tmp_path)]
    names = {"MODEL": words, "BEFORE": BEFORE_THE_FIRST_STEP, "OPTIONAL": OPTIONAL, "INSTALLED": installed}
    code = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND")), None)
    assert line is not None, done.stderr[-4000:]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["status"] == 0, done.stderr[-4000:]
    assert (found["early"], found["late"]) == ([], [])
    assert found["drew"] == ["PIL.ImageFont"], "the test would see it"
    if sys.platform == "linux":
        assert found["mib"] < MOST_MIB
    if "bitsandbytes" in installed:
        assert {"bitsandbytes.nn.modules", "peft.tuners.lora.bnb"} <= set(found["layers"])
