"""The tensors of a folder under the names that a model has: those of the native class, or of the folder's own code."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmtune.errors import ModelError
from llmtune.merging.weights import Weights
from llmtune.models.ports import native_config

from ..models.ports import layouts

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip


class ByNames(PreTrainedModel):
    """A model of the folder's own code, as far as tensors go: it has those of the files, under their names."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(config)
        for name, value in tensors.items():
            module: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(torch.empty_like(value, device="meta")))


@pytest.fixture
def baichuan(tmp_path) -> Path:
    """A checkpoint of 2023, with its own code beside it: its W_pack is q, k and v of the native class."""
    config = LlamaConfig(**SIZES, tie_word_embeddings=False)
    native = layouts.random_model(LlamaForCausalLM, config).state_dict()
    old = SIZES | {
        "architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan", "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM"},
    }  # fmt: skip
    return layouts.write(tmp_path / "baichuan", old, layouts.baichuan(native, 2))


def test_the_native_class_gets_native_tensors(baichuan):
    model = AutoModelForCausalLM.from_config(native_config(baichuan))
    files = load_file(baichuan / "model.safetensors")
    with ExitStack() as stack:
        weights = Weights(model, baichuan, stack, allow_pickle=False)
        packed = [weights.read(f"model.layers.1.self_attn.{part}_proj.weight") for part in "qkv"]
    assert torch.equal(torch.cat(packed), files["model.layers.1.self_attn.W_pack.weight"])


def test_the_folders_own_code_gets_the_tensors_of_its_files(baichuan):
    """With --trust_remote_code true: nothing is split or renamed, and a native class is refused."""
    files = load_file(baichuan / "model.safetensors")
    model = ByNames(LlamaConfig(**SIZES), files)
    with ExitStack() as stack:
        weights = Weights(model, baichuan, stack, allow_pickle=False, remote=True)
        for name, value in files.items():
            assert torch.equal(weights.read(name), value), name
        with pytest.raises(ModelError, match="W_pack"):
            Weights(
                AutoModelForCausalLM.from_config(native_config(baichuan)),
                baichuan,
                stack,
                allow_pickle=False,
                remote=True,
            )
        with pytest.raises(ModelError, match="_proj"):
            Weights(model, baichuan, stack, allow_pickle=False)
