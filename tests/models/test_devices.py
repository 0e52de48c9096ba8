"""Layers spread over GPUs: the map is computed for GPUs that are not there, and checked."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.integrations.accelerate import infer_auto_device_map

from llmtune import SftArguments
from llmtune.errors import UsageError
from llmtune.models import devices
from llmtune.models.devices import memory_limits, own_gpus, spread_options
from llmtune.run.training_arguments import check_processes
from tests.accelerated import pretend

GIB = 2**30


@pytest.fixture(scope="module")
def model():
    """The shape of Qwen2.5-7B, without its weights: 15.2 GB in bf16."""
    config = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def test_own_gpus_are_shared_out():
    assert own_gpus(1, 0, 1) == [0]
    assert own_gpus(2, 0, 1) == [0, 1]
    shares = [own_gpus(5, rank, 2) for rank in range(2)]
    assert shares == [[0, 2, 4], [1, 3]]
    with pytest.raises(UsageError, match="lower --nproc"):
        own_gpus(1, 1, 2)


@pytest.mark.parametrize(
    ("free", "num_processes", "rank"),
    [({0: 12 * GIB, 1: 12 * GIB}, 1, 0), ({0: 10 * GIB, 1: 10 * GIB, 2: 20 * GIB, 3: 20 * GIB}, 2, 1)],
    ids=["two GPUs", "the second process's two of four"],
)
def test_device_map_uses_the_own_gpus_of_a_process(model, monkeypatch, free, num_processes, rank):
    pretend(monkeypatch, "cuda", count=len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 24 * GIB))
    monkeypatch.setattr(devices, "local_rank", lambda: rank)
    monkeypatch.setattr(devices, "local_world_size", lambda: num_processes)
    options = spread_options("sequential")
    own = own_gpus(len(free), rank, num_processes)
    assert list(options["max_memory"]) == own
    found = infer_auto_device_map(model, options["max_memory"], {"Qwen2DecoderLayer"})
    assert set(found.values()) == set(own)
    layers = [found[f"model.layers.{number}"] for number in range(28)]  # each is whole on one
    assert layers == sorted(layers)
    assert found["model.embed_tokens"] == own[0]
    assert found["lm_head"] == own[-1]
    for gpu in own:
        placed = [model.get_submodule(name) for name, device in found.items() if device == gpu]
        size = sum(value.numel() * 2 for module in placed for value in module.parameters())
        assert size <= memory_limits(free)[gpu] < free[gpu]


def test_with_one_device_a_map_means_that_device(capsys):
    assert spread_options(None) == spread_options("auto") == {}
    assert "--device_map auto: this process has one device, the CPU, which gets all layers." in capsys.readouterr().err


def test_layers_are_spread_or_divided():
    with pytest.raises(UsageError, match="--device_map places whole layers"):
        SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], device_map="auto", deepspeed_config_path="zero3")


def test_gloo_and_quantised_weights(monkeypatch):
    args = SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], ddp_backend="gloo", quantization_bit=4)
    pretend(monkeypatch, "cuda")
    with pytest.raises(UsageError, match="--ddp_backend gloo does not work with --quantization_bit"):
        check_processes(args)
