"""`--optim`, `--pure_bf16` and `--optim_offload`: what is refused before anything is loaded, and with which words."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from transformers.training_args import OptimizerNames

from llmtune import SftArguments
from llmtune.arguments.optimizers import OPTIMIZERS, need_optimizer
from llmtune.errors import MissingPackageError, UsageError
from llmtune.run.optimizer import check_optimizer_device

FULL: dict[str, Any] = {"model_type": "llmtune-tiny", "sft_type": "full", "gradient_accumulation_steps": 1}


def args_of(**options: Any) -> SftArguments:
    return SftArguments(**FULL | options)


def test_the_table_has_every_name_of_transformers():
    assert {one.value for one in OptimizerNames} | {"muon"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_missing_package_is_named_with_its_pip_command(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one = OPTIMIZERS[name]
    if one.broken:
        with pytest.raises(UsageError, match=f"--optim {name} does not work: "):
            args_of(optim=name)
        return
    args = args_of(optim=name)
    if not one.packages:
        need_optimizer(args, 1)
        return
    with pytest.raises(MissingPackageError, match=re.escape(f"Install it with: pip install {one.install}")) as refused:
        need_optimizer(args, 1)
    assert str(refused.value).startswith(f"--optim {name} needs {one.packages[0]}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optim": "adamw_torhc"}, "there is no such optimizer. Did you mean adamw_torch"),
        ({"optim": "muon", "sft_type": "lora"}, "needs --sft_type full: it orthogonalises"),
        ({"optim": "galore_adamw", "sft_type": "lora"}, "needs --sft_type full: it projects"),
        ({"optim": "muon", "fsdp": True}, "--fsdp shards them"),
        ({"optim": "apollo_adamw", "deepspeed_config_path": "zero2"}, "--deepspeed_config_path shards them"),
        ({"optim": "lomo", "gradient_accumulation_steps": 2}, "use --gradient_accumulation_steps 1"),
        ({"optim": "lomo", "on_nan": "skip"}, "remove --on_nan skip"),
        ({"optim": "galore_adamw_layerwise", "resume_from_checkpoint": "x"}, "cannot resume"),
        ({"pure_bf16": True, "dtype": "fp32"}, "remove --dtype fp32"),
        ({"pure_bf16": True, "optim": "adamw_torch"}, "would lose small updates.*adamw_torch_8bit"),
        ({"pure_bf16": True, "optim": "muon"}, "would lose small updates"),
        ({"pure_bf16": True, "fsdp": True}, "--pure_bf16 true does not work with --fsdp"),
        ({"pure_bf16": True, "deepspeed_config_path": "zero2"}, "does not work with --deepspeed_config_path"),
        ({"optim_offload": True, "optim": "sgd"}, "remove --optim sgd"),
        ({"optim_offload": True, "fsdp": True}, "use --fsdp_offload true instead"),
        ({"optim_offload": True, "deepspeed_config_path": "zero3"}, "zero2_offload instead"),
    ],
)
def test_what_excludes_each_other(options, words):
    with pytest.raises(UsageError, match=words):
        args_of(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optim_offload": True}, "3 times, once per process: use --deepspeed_config_path zero2_offload"),
        ({"optim": "lomo"}, "use --nproc 1"),
    ],
)
def test_what_several_processes_cannot_use(options, words, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    need_optimizer(args_of(**options), 1)
    with pytest.raises(UsageError, match=words):
        need_optimizer(args_of(**options), 3)


def test_what_they_imply():
    found = args_of(pure_bf16=True)
    assert (found.optim, found.dtype) == ("adamw_torch_8bit", "bf16")
    assert args_of(pure_bf16=True, optim="stable_adamw").optim == "stable_adamw"
    both = args_of(pure_bf16=True, optim_offload=True)
    assert (both.optim, both.dtype) == (None, "bf16")
    assert args_of(optim="schedule_free_adamw").lr_scheduler_type == "constant_with_warmup"
    assert args_of(optim="schedule_free_adamw", lr_scheduler_type="linear").lr_scheduler_type == "linear"
    adapters = args_of(sft_type="lora", pure_bf16=True, optim_offload=True)
    assert (adapters.optim, adapters.dtype) == (None, None)
    assert adapters.unused_flags() == ["--pure_bf16", "--optim_offload"]


def test_devices(monkeypatch):
    class Mac:
        kind, is_gpu, is_cuda, needs_triton, name = "mps", True, False, False, "Apple M5"

    monkeypatch.setattr("llmtune.run.optimizer.accelerator", Mac)
    with pytest.raises(UsageError, match="compiled by Triton, which Apple M5 lacks"):
        check_optimizer_device(args_of(pure_bf16=True))
    with pytest.raises(UsageError, match="needs an NVIDIA or AMD GPU"):
        check_optimizer_device(args_of(optim="paged_ademamix_8bit"))
