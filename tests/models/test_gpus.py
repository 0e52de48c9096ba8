"""Cards by name and memory, what is shared among devices, and what optimizers keep."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from llmtune.errors import UsageError
from llmtune.models.devices import GPUS, find_gpu, gib, gpu_of_device
from llmtune.planning.memory import OFFLOADED, Trained, state_bytes
from llmtune.planning.workload import Sharding, sharding_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("24GB", "24 GB GPU"), ("24", None), ("80g", "80 GB GPU"), ("A100-80", "A100-80"), ("a100", "A100-80"),
        ("A100-40GB", "A100-40"), ("A100-80G", "A100-80"), ("RTX 4090", "4090"), ("rtx3090", "3090"), ("H100", "H100"),
        ("H200", "H200"), ("A10", "A10"), ("A10G", "A10"), ("V100", "V100"), ("V100-32GB", "V100-32"), ("L40S", "L40S"),
        ("T4", "T4"), ("H1000", None), ("GTX 480", None),
    ],
)  # fmt: skip
def test_a_gpu_is_found_by_name_or_memory(text, name):
    if name is None:
        with pytest.raises(UsageError, match="no such GPU"):
            find_gpu(text)
    else:
        assert find_gpu(text).name == name


def test_each_card_is_found_by_its_own_name():
    assert all(find_gpu(name) is card for name, (card, _) in GPUS.items())


def test_a_typo_is_answered():
    with pytest.raises(UsageError, match="Did you mean L40S"):
        find_gpu("L40SX")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80"), ("NVIDIA A100-PCIE-40GB", "A100-40"), ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100-PCIe"), ("Tesla V100-SXM2-32GB", "V100-32"),
        ("Tesla V100-SXM2-16GB", "V100"), ("Tesla T4", "T4"), ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA RTX 6000 Ada Generation", "6000-Ada"), ("Some GPU", None),
    ],
)  # fmt: skip
def test_gpus_are_recognised_by_pytorchs_device_names(name, found):
    card = gpu_of_device(name)
    assert (card and card.name) == found


def test_usable_is_less_than_all():
    assert 0.9 * 80 * 2**30 < find_gpu("H100").usable < 80 * 2**30
    assert gib(3 * 2**30) == "3.00 GiB"
    assert gib(5 * 2**20) == "5.0 MiB"


def given(**flags):
    return SimpleNamespace(**flags)


def test_sharding(tmp_path):
    assert sharding_of(given()) == Sharding()
    assert sharding_of(given(nproc=4)) == Sharding(4)
    assert sharding_of(given(nproc=4, fsdp=True)) == Sharding(4, 4, 4, 4)
    assert sharding_of(given(nproc=2, fsdp=True, fsdp_offload=True)) == Sharding(2, 2, 2, 2, True, True)
    assert sharding_of(given(nproc=8, deepspeed_config_path="zero3")) == Sharding(8, 8, 8, 8)
    assert sharding_of(given(nproc=8, deepspeed_config_path="zero2_offload")) == Sharding(8, 1, 8, 8, True, False)
    assert sharding_of(given(device_map="auto"), 4) == Sharding(spread=4)
    assert sharding_of(given(device_map="auto", nproc=2), 5) == Sharding(2, spread=2)
    assert sharding_of(given(device_map="auto")) == sharding_of(given(nproc=1), 4) == Sharding()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}))
    assert sharding_of(given(nproc=2, deepspeed_config_path=str(file))) == Sharding(2, 2, 2, 2, False, True)


def test_ranks_of_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert sharding_of(given(nproc=1)) == Sharding(4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("adamw_torch", 8.0), ("adamw_torch_fused", 8.0), ("sgd", 0.0), ("adamw_bnb_8bit", 2 + 8 / 256),
        ("adamw_8bit", 2 + 8 / 256), ("adamw_torch_8bit", 2 + 8 / 256), ("paged_adamw_8bit", 0.0),
        ("lion_8bit", 1 + 4 / 256),
        ("adafactor", 4 * 2048 / 1024**2), ("adamw_torch_4bit", 1 + 8 / 256), ("lion_32bit", 4.0),
        ("muon", 4.0), (OFFLOADED, 0.0), ("stable_adamw", 8.0),
    ],
)  # fmt: skip
def test_bytes_of_states(name, count):
    assert state_bytes(name, [Trained((1024, 1024), 4)]) / 1024**2 == pytest.approx(count)


def test_small_tensors_and_embeddings_stay_whole():
    assert state_bytes("adamw_torch_8bit", [Trained((64,), 2)]) == 64 * 2 * 2
    assert state_bytes("muon", [Trained((64, 8), 4, head=True)]) == 64 * 8 * 8
    assert state_bytes(OFFLOADED, [Trained((64, 8), 2)], on_gpu=False) == 64 * 8 * 12
    assert state_bytes("stable_adamw", [Trained((64, 8), 2)]) == 64 * 8 * 6
    assert state_bytes("adamw_bnb_8bit", [Trained((64,), 4)]) == 64 * 8
    assert state_bytes("adamw_bnb_8bit", [Trained((1024, 64), 4, embedding=True)]) == 1024 * 64 * 8
    assert state_bytes("paged_adamw_8bit", [Trained((64,), 4)], on_gpu=False) == 64 * 8
