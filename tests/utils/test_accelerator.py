"""Each kind of accelerator, by a stand-in of torch's module of it: what is asked of it, and what a run does with it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from llmtune import SftArguments
from llmtune.distributed import collectives
from llmtune.errors import MissingPackageError
from llmtune.models.devices import first_device, spread_options
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.layers import check_kernels
from llmtune.planning.auto import free_memory, used_memory
from llmtune.run import training_arguments as run_arguments
from llmtune.run.log import first_decisions
from llmtune.training.throughput import peak_memory_gib
from llmtune.utils.accelerator import accelerator, to_float64
from tests.accelerated import FREE, GIB, KINDS, PEAK, TOTAL, USED, Device, device_module, pretend

ROOT = Path(__file__).parents[2]
BACKENDS = {"cuda": "nccl", "npu": "hccl", "xpu": "xccl", "mps": "gloo", "cpu": "gloo"}
RUN: dict[str, Any] = {"model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"]}


@pytest.fixture
def hccl(monkeypatch):
    """As torch_npu registers it."""
    monkeypatch.setitem(dist.Backend.default_device_backend_map, "npu", "hccl")


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_a_device(monkeypatch, hccl, kind):
    calls = pretend(monkeypatch, kind, count=2 if kind != "mps" else 1)
    found = accelerator()
    assert (found.kind, found.is_gpu, found.is_cuda) == (kind, True, kind == "cuda")
    assert found.backend == BACKENDS[kind]
    assert found.device(1) == ("mps" if kind == "mps" else f"{kind}:1")
    assert found.current_device() == ("mps" if kind == "mps" else f"{kind}:1")
    assert found.name == f"{kind.upper()} 9"
    assert found.pins_memory is (kind != "mps")
    assert found.has_float64 is (kind == "cuda")
    assert first_device() == ("mps" if kind == "mps" else f"{kind}:0")
    found.select(torch.device("cpu"))
    assert ("set_device", torch.device("cpu")) not in calls
    found.select(own := Device(kind))
    assert (("set_device", own) in calls) is (kind != "mps")
    found.empty_cache()
    assert ("empty_cache",) in calls


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_device(monkeypatch, kind):
    pretend(monkeypatch, kind)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * GIB}))
    assert free_memory() == (TOTAL - PEAK if kind == "mps" else FREE)
    assert used_memory() == USED
    assert peak_memory_gib() == PEAK / GIB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": GIB}))
    assert free_memory() == (GIB if kind == "mps" else FREE), "a Mac's GPU has what the machine has left"


def test_memory_without_a_device(monkeypatch):
    pretend(monkeypatch, "cpu")
    assert accelerator().kind == "cpu"
    assert 0 < used_memory() <= peak_memory_gib() * GIB * 1.01
    assert free_memory() > 0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert peak_memory_gib() > 0.05
    assert accelerator().count == 0
    accelerator().empty_cache()
    accelerator().select(torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_a_run(monkeypatch, hccl, tmp_path, kind):
    pretend(monkeypatch, kind)
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = SftArguments(**RUN)
    fields = run_arguments._fields(args, tmp_path, False)
    assert fields["use_cpu"] is False
    assert (fields["bf16"], fields["fp16"]) == (True, False)
    assert fields["optim"] == ("adamw_torch_fused" if kind in ("cuda", "xpu") else "adamw_torch")
    assert fields["ddp_backend"] == BACKENDS[kind]
    assert fields["dataloader_pin_memory"] is (kind != "mps")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    assert run_arguments.training_arguments(args, tmp_path, has_validation=False).bf16
    facts = first_decisions(args)
    assert facts.facts["Device"] == accelerator().name
    assert not any("no GPU" in line for line in facts)


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_of_weights(monkeypatch, kind):
    info = MODEL_MAPPING["llmtune-tiny"]
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        calls = pretend(monkeypatch, kind, bf16=supported)
        assert resolve_dtype(info)[0] is dtype
        if kind in ("cuda", "xpu"):  # torch says yes of a T4 too, which emulates it
            assert calls == [("is_bf16_supported", ("including_emulation", False))]


def test_layers_are_spread_over_devices_of_any_kind(monkeypatch):
    pretend(monkeypatch, "npu", count=2)
    assert spread_options("auto") == {"device_map": "auto", "max_memory": {0: int(FREE * 0.9), 1: int(FREE * 0.9)}}


def test_compiling_needs_triton_where_torch_writes_it(monkeypatch):
    args = SftArguments(**RUN, torch_compile=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, needed in {"cuda": True, "xpu": True, "npu": False, "mps": False}.items():
        pretend(monkeypatch, kind)
        if needed:
            with pytest.raises(MissingPackageError, match="triton"):
                check_kernels(args)
        else:
            check_kernels(args)


def test_the_cpu_can_be_asked_for(monkeypatch):
    pretend(monkeypatch, "mps")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert accelerator().kind == first_device() == "cpu"


def test_sums_of_ranks_whose_device_lacks_float64(monkeypatch, hccl):
    pretend(monkeypatch, "npu")
    monkeypatch.setattr(collectives, "_has_ranks", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "hccl")
    monkeypatch.setattr(torch, "device", lambda text: Device(str(text).partition(":")[0]))
    monkeypatch.setattr(collectives, "gather_from_ranks", lambda value: [value, [0.5, 2.0**60]])
    assert collectives.sum_over_ranks([1.0, 1.0]) == [1.5, 2.0**60 + 1.0]


class OnMps(torch.Tensor):
    """Of a device without fp64, as far as the choice goes."""

    device = Device("mps")  # type: ignore[assignment]

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64")

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_numbers_that_need_float64_leave_a_device_without_it():
    assert to_float64(torch.ones(2).as_subclass(OnMps)).dtype is torch.float64
    assert to_float64(torch.ones(2)).dtype is torch.float64


SCRIPT = """
import sys
import torch
from tests.accelerated import device_module
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", device_module("npu"))
torch.distributed.Backend.register_backend("hccl", print, devices=["npu"])
from llmtune.utils.accelerator import accelerator
found = accelerator()
print(found.kind, found.name, found.backend, torch.device(found.device(0)), found.free_memory(0))
from llmtune.cli.main import main
sys.exit(main(["plan", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#20"]))
"""


@pytest.mark.medium
def test_torch_is_asked_and_the_device_used():
    """By torch's own registration of a foreign backend, as torch_npu does it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert f"npu NPU 9 hccl npu:0 {FREE}" in found.stdout
    assert "dtype bf16" in found.stdout
    assert "of 19.20 GiB usable on this machine's NPU 9" in found.stdout


# One place asks


ASKS = {"cuda", "mps", "xpu", "npu", "mtia", "hip", "accelerator"}
"""Modules of torch about devices, and torch.version.hip."""
MAY = {
    "llmtune/utils/accelerator.py": "the place",
    "llmtune/training/attention.py": "FlashAttention, and torch's varlen kernel, exist for CUDA alone",
    "llmtune/models/packed_attention.py": "the same kernel",
    "llmtune/tuners/load.py": "FlashAttention, for the device of --device",
    "llmtune/serving/routing.py": "transformers' continuous batching",
}


def questions(source: str) -> list[int]:
    """Lines that ask for one make of device: torch.cuda and its kin, `is_cuda` of a tensor, a text "cuda"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ASKS | {"backends"}:
            owner = ast.unparse(node.value)
            if owner in ("torch", "torch.backends", "torch.version"):
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr in ("is_cuda", "is_mps", "is_xpu"):
            if ast.unparse(node.value) not in ("accelerator()", "found"):
                found.append(node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.partition(":")[0] in ASKS - {"accelerator"} or node.value in ("nccl", "hccl", "xccl"):
                found.append(node.lineno)
        elif isinstance(node, ast.Attribute) and node.attr == "double":
            found += [] if ast.unparse(node.value).endswith(".cpu()") else [node.lineno]
    return found


IN_FLAGS = {"llmtune/arguments/training_groups.py": "choices of --ddp_backend"}
IN_FLOAT64 = {
    "llmtune/inference/draws.py": "where the device lacks fp64, it works on the CPU",
    "llmtune/inference/decode_rows.py": "what it returns",
}


def test_reads_what_it_should():
    assert questions("x = torch.cuda.is_available()") == [1]
    assert questions("torch.backends.mps.is_available()") == [1, 1]
    assert questions('torch.device("cuda:0")') == [1]
    assert questions("query.is_cuda\nloss.double()\nloss.cpu().double()") == [1, 2]
    assert not questions("accelerator().is_cuda, self.accelerator.gather(x)")


@pytest.mark.parametrize("file", sorted((ROOT / "llmtune").rglob("*.py")), ids=lambda file: file.stem)
def test_nothing_else_asks_for_one_make_of_device(file: Path):
    name = file.relative_to(ROOT).as_posix()
    lines = questions(file.read_text("utf-8"))
    assert bool(lines) == (name in MAY | IN_FLAGS | IN_FLOAT64), f"{name}: lines {lines}; ask accelerator()"


def test_the_stand_in_has_what_torch_has():
    for kind in ("cuda", "xpu", "mps"):
        missing = [name for name in vars(device_module(kind)) if not hasattr(getattr(torch, kind), name)]
        assert [name for name in missing if not name.startswith("_") and name != "manual_seed_all"] == []
