"""Compiled layers learn as uncompiled ones do; what a machine lacks is said before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch

from llmtune import SftArguments, sft
from llmtune.errors import MissingPackageError, UsageError
from llmtune.models import layers as kernels
from llmtune.models.layers import check_kernels, compile_layers, note_kernels, without_compiling
from llmtune.models.loading import get_model_tokenizer
from llmtune.run import training_arguments
from llmtune.run.log import Decisions
from tests.accelerated import pretend

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 5, "eval_steps": 5, "logging_steps": 1, "val_dataset_sample": 4, "learning_rate": 1e-2,
    "lora_target_modules": ["ALL"], "warmup_ratio": 0,
}  # fmt: skip


def run(folder: Path, **options: Any) -> tuple[Any, list[float]]:
    found = sft(SftArguments(**(RUN | {"output_dir": str(folder)} | options)))
    records = map(json.loads, (found.output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines())
    return found, [value for record in records if (value := record.get("loss", record.get("eval_loss")))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 128, "gradient_checkpointing": True}])
def test_compiled_layers_learn_alike(tmp_path, options):
    from torch._dynamo.utils import counters

    counters.clear()
    compiled, ours = run(tmp_path / "a", torch_compile=True, **options)
    assert counters["stats"]["unique_graphs"] >= 1, "nothing was compiled"
    plain, theirs = run(tmp_path / "b", **options)
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert "torch.compile: 4 decoder layers" in (compiled.output_dir / "report.md").read_text()
    names = [{file.name for file in found.last_checkpoint.iterdir()} for found in (compiled, plain)]
    assert names[0] == names[1]
    from safetensors.torch import load_file

    keys = [load_file(found.last_checkpoint / "adapter_model.safetensors").keys() for found in (compiled, plain)]
    assert keys[0] == keys[1]


def test_layers_are_compiled_one_by_one(capfd):
    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
    compile_layers(model, SftArguments(**RUN), Decisions())
    assert not any(module._compiled_call_impl for module in model.modules())
    compile_layers(model, SftArguments(**RUN, torch_compile=True), Decisions())
    compiled = [module for module in model.modules() if module._compiled_call_impl]
    assert compiled == list(model.model.layers)
    with without_compiling(model), torch.no_grad():
        model(torch.arange(3, 9)[None])  # as written: without a compiler, in no time
    compile_layers(torch.nn.Linear(2, 2), SftArguments(**RUN, torch_compile=True), Decisions())
    assert "--torch_compile has no effect" in capfd.readouterr().err


def test_kernels_need_a_gpu_and_compiling_a_compiler(tmp_path, monkeypatch):
    pretend(monkeypatch, "cpu")
    for flag in ("use_liger", "use_kernels"):
        with pytest.raises(UsageError, match=f"--{flag} true needs a GPU"):
            sft(SftArguments(**RUN, output_dir=str(tmp_path), **{flag: True}))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"C\+\+ compiler"):
        check_kernels(SftArguments(**RUN, torch_compile=True))
    assert not list(tmp_path.iterdir())


def test_a_missing_kernel_package_is_named_with_its_pip_line(monkeypatch):
    pretend(monkeypatch, "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for flag, package in (("use_liger", "liger-kernel"), ("use_kernels", "kernels"), ("torch_compile", "triton")):
        with pytest.raises(MissingPackageError, match=f"--{flag} true needs {package}.*pip install"):
            check_kernels(SftArguments(**RUN, **{flag: True}))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_kernels(SftArguments(**RUN, use_liger=True, use_kernels=True, torch_compile=True))


def test_liger_leaves_the_loss_alone(tmp_path):
    fields = training_arguments._fields(SftArguments(**RUN, use_liger=True), tmp_path, False)
    assert fields["use_liger_kernel"] is True
    assert fields["liger_kernel_config"] == {"cross_entropy": False, "fused_linear_cross_entropy": False}


def test_kernels_are_read_off_the_model(capfd):
    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
    decisions = Decisions()
    args = SftArguments(**RUN, use_liger=True, use_kernels=True)
    note_kernels(model, args, decisions)
    assert not decisions.facts
    said = capfd.readouterr().err
    assert "--use_liger has no effect" in said
    assert "--use_kernels has no effect" in said

    def forward(self, hidden):
        return hidden

    forward.__module__ = "liger_kernel.transformers.rms_norm"
    model.model.norm.forward = MethodType(forward, model.model.norm)
    note_kernels(model, args, decisions)
    assert decisions.facts["Kernels (--use_liger)"] == "Qwen2RMSNorm"


def test_the_optimizer_of_a_machine(tmp_path, monkeypatch):
    args = SftArguments(**RUN)
    assert training_arguments._fields(args, tmp_path, False)["optim"] == "adamw_torch"
    pretend(monkeypatch, "cuda")
    assert kernels.default_optimizer() == "adamw_torch_fused"
    args.optim = "sgd"
    pretend(monkeypatch, "cpu")
    assert training_arguments._fields(args, tmp_path, False)["optim"] == "sgd"
