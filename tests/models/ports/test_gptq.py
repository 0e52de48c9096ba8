"""GPTQ checkpoints of Qwen: packed tensors are split without unpacking them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmtune.errors import ModelError
from llmtune.models.ports import find_port, native_config
from llmtune.models.ports.tensors import converted, open_checkpoint

from .layouts import write

GROUP = 16
Packed = dict[str, Tensor]


def pack_rows(numbers: Tensor, bits: int) -> Tensor:
    """[N, M] of numbers below 2^bits -> [N * bits / 32, M] of int32, the first in the lowest bits."""
    per_int = 32 // bits
    shifted = numbers.view(-1, per_int, numbers.shape[1]).long() << (torch.arange(per_int) * bits)[:, None]
    total = shifted.sum(1)
    return torch.where(total >= 2**31, total - 2**32, total).int()


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    shifted = packed.long()[:, None] >> (torch.arange(32 // bits) * bits)[:, None]
    return (shifted & (2**bits - 1)).flatten(0, 1)


def quantise(weight: Tensor, bits: int) -> Packed:
    """Round to nearest, a scale and a zero for each group of inputs and each output, in AutoGPTQ's layout."""
    by_input = weight.T.reshape(-1, GROUP, weight.shape[0])  # [groups, GROUP, out]
    low, high = by_input.amin(1), by_input.amax(1)
    scales = (high - low) / (2**bits - 1)
    zeros = (-low / scales).round().clamp(1, 2**bits - 1)
    numbers = (by_input / scales[:, None] + zeros[:, None]).round().clamp(0, 2**bits - 1)
    return {
        "qweight": pack_rows(numbers.flatten(0, 1), bits),
        "qzeros": pack_rows(zeros.T - 1, bits).T.contiguous(),  # this format stores them less one
        "scales": scales,
        "g_idx": (torch.arange(weight.shape[1]) // GROUP).int(),
    }


def dequantise(packed: Packed, bits: int) -> Tensor:
    numbers = unpack_rows(packed["qweight"], bits)
    zeros = unpack_rows(packed["qzeros"].T, bits).T + 1
    groups = packed["g_idx"].long()
    return ((numbers - zeros[groups]) * packed["scales"][groups]).T


def quantised_qwen(oracle: Path, folder: Path, bits: int, **tensors: Tensor) -> Path:
    found: dict[str, Tensor] = {}
    for name, tensor in load_file(oracle / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module != name and tensor.dim() == 2 and ".h." in name:
            found |= {f"{module}.{leaf}": part for leaf, part in quantise(tensor, bits).items()}
            found.setdefault(f"{module}.bias", torch.zeros(tensor.shape[0]))  # AutoGPTQ gives every layer one
        else:
            found[name] = tensor
    config = json.loads((oracle / "config.json").read_text())
    config["quantization_config"] = {
        "bits": bits,
        "group_size": GROUP,
        "desc_act": False,
        "sym": False,
        "quant_method": "gptq",
        "modules_in_block_to_quantize": [["attn.c_attn"], ["attn.c_proj"], ["mlp.w1", "mlp.w2"], ["mlp.c_proj"]],
    }
    return write(folder, config, found | tensors)


def convert(folder: Path) -> dict[str, Any]:
    old = json.loads((folder / "config.json").read_text())
    port = find_port(old)
    assert port is not None
    with ExitStack() as stack:
        state = converted(open_checkpoint(folder, False, stack), port, old, native_config(folder).to_dict())
        return {name: tensor.read() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def qwen(assets: Path) -> Path:
    return assets / "oracles" / "qwen_v1"


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_dequantise_to_the_originals(qwen, tmp_path, bits):
    original = load_file(qwen / "model.safetensors")
    native = convert(quantised_qwen(qwen, tmp_path, bits))
    size = 64
    for n in range(2):
        fused = original[f"transformer.h.{n}.attn.c_attn.weight"]
        expected = dequantise(quantise(fused, bits), bits)
        assert (expected - fused).abs().max() < 0.1  # the packer of this test is one
        for place, part in enumerate("qkv"):
            module = f"model.layers.{n}.self_attn.{part}_proj."
            packed = {leaf: native[module + leaf] for leaf in ("qweight", "qzeros", "scales", "g_idx")}
            rows = slice(place * size, (place + 1) * size)
            assert torch.equal(dequantise(packed, bits), expected[rows])
            assert torch.equal(native[module + "bias"], original[f"transformer.h.{n}.attn.c_attn.bias"][rows])
        for old, new in (("attn.c_proj", "self_attn.o_proj"), ("mlp.w2", "mlp.gate_proj")):
            packed = {
                leaf: native[f"model.layers.{n}.{new}.{leaf}"] for leaf in ("qweight", "qzeros", "scales", "g_idx")
            }
            expected = dequantise(quantise(original[f"transformer.h.{n}.{old}.weight"], bits), bits)
            assert torch.equal(dequantise(packed, bits), expected)
            assert f"model.layers.{n}.{new}.bias" not in native


@pytest.mark.parametrize("bits", [4, 8])
def test_answers_as_the_numbers_say(qwen, tmp_path, bits, load):
    pytest.importorskip("gptqmodel")
    (tmp_path / "packed").mkdir()
    quantised = load(quantised_qwen(qwen, tmp_path / "packed", bits))
    assert type(quantised.model.layers[0].self_attn.q_proj).__name__ == "TorchLinear"
    tensors = load_file(qwen / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and ".h." in name:
            tensors[name] = dequantise(quantise(tensor, bits), bits)
    (tmp_path / "whole").mkdir()
    whole = load(write(tmp_path / "whole", json.loads((qwen / "config.json").read_text()), tensors))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = quantised.eval()(ids).logits, whole.eval()(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-2 * float(theirs.abs().max()), rtol=0)


def test_the_configuration_is_carried(qwen, tmp_path):
    found = native_config(quantised_qwen(qwen, tmp_path, 4)).quantization_config
    assert (found["quant_method"], found["bits"], found["group_size"]) == ("gptq", 4, GROUP)
    assert found["modules_in_block_to_quantize"] == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.up_proj", "mlp.gate_proj"],
        ["mlp.down_proj"],
    ]


def test_a_bias_that_is_not_zero(qwen, tmp_path):
    with pytest.raises(ModelError, match=r"o_proj\.bias is not zero"):
        convert(quantised_qwen(qwen, tmp_path, 4, **{"transformer.h.0.attn.c_proj.bias": torch.ones(64)}))


def test_parts_that_share_a_number(qwen, tmp_path):
    folder = quantised_qwen(qwen, tmp_path, 4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1, "kv_channels": 12}))
    with pytest.raises(ModelError, match="whole 32-bit numbers"):
        convert(folder)


def test_formats_of_their_own(qwen, tmp_path, load):
    config = json.loads((qwen / "config.json").read_text())
    for quantised in ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"quant_method": "gptq", "bits": 3}):
        folder = write(tmp_path, config | {"quantization_config": quantised}, {"lm_head.weight": torch.ones(1)})
        with pytest.raises(ModelError, match=r"not quantised.*--quantization_bit 4"):
            load(folder)
