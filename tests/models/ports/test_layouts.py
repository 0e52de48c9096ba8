"""Families without an oracle: original layouts, made from native models, come back as those models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llmtune.errors import ModelError
from llmtune.models.ports import native_config
from llmtune.models.ports.modeling_llama_alibi import LlamaAlibiConfig, LlamaAlibiForCausalLM
from llmtune.models.ports.tensors import LazyTensor

from .layouts import baichuan, chatglm, internlm2, qwen, random_model, write

LAYERS = 2
SIZES: dict[str, Any] = {"vocab_size": 96, "num_hidden_layers": LAYERS, "tie_word_embeddings": False}
IDS = torch.arange(30).view(2, 15) * 3 % 96


@torch.no_grad()
def check(folder: Path, load: Any, native: Any, **options: Any) -> Any:
    """The logits of the loaded folder are those of the native model."""
    model = load(folder, **options)
    assert type(model) is type(native)
    assert set(model.state_dict()) == set(native.state_dict())
    torch.testing.assert_close(model(IDS).logits, native(IDS).logits, atol=1e-5, rtol=0)
    return model


def make_chatglm(**changed: Any) -> tuple[Any, dict[str, Any]]:
    config = GlmConfig(
        **SIZES, hidden_size=40, intermediate_size=56, num_attention_heads=6, num_key_value_heads=3, head_dim=8,
        rms_norm_eps=1e-4, attention_bias=True, max_position_embeddings=64, pad_token_id=0, eos_token_id=2,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * changed.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    original = {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "hidden_size": 40, "ffn_hidden_size": 56,
        "num_attention_heads": 6, "multi_query_attention": True, "multi_query_group_num": 3, "kv_channels": 8,
        "num_layers": LAYERS, "padded_vocab_size": 96, "seq_length": 64, "layernorm_epsilon": 1e-4,
        "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True,
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"}, "torch_dtype": "float16",
    }  # fmt: skip
    return random_model(GlmForCausalLM, config), original | changed


@pytest.mark.parametrize("changed", [{}, {"rope_ratio": 50}])
def test_chatglm3_converts_to_equal_logits(tmp_path, load, changed):
    native, config = make_chatglm(**changed)
    model = check(write(tmp_path, config, chatglm(native.state_dict(), LAYERS)), load, native)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 0)


def make_internlm2(**changed: Any) -> tuple[Any, dict[str, Any]]:
    config = LlamaConfig(
        **SIZES, hidden_size=48, intermediate_size=56, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    original = SIZES | {
        "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "hidden_size": 48,
        "intermediate_size": 56, "num_attention_heads": 6, "num_key_value_heads": 2, "bias": False,
        "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    }  # fmt: skip
    return random_model(LlamaForCausalLM, config), original | changed


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("pickle", [False, True])
def test_internlm2_converts_to_equal_logits(tmp_path, load, shards, pickle):
    native, config = make_internlm2()
    tensors = internlm2(native.state_dict(), LAYERS, groups=2, width=8)
    folder = write(tmp_path, config, tensors, shards=shards, pickle=pickle)
    check(folder, load, native, allow_pickle=pickle)


def test_the_groups_of_internlm2():
    """As its code reads them: for each group its queries, then a key, then a value."""
    from llmtune.models.ports.llama import _internlm2_modules

    heads, groups, width, size = 6, 2, 4, 5
    fused = torch.randn(groups * (heads // groups + 2) * width, size)
    x = torch.randn(7, size)
    out = (x @ fused.T).view(7, groups, heads // groups + 2, width)  # rearrange "q (h gs d) -> q h gs d"
    expected = {"q_proj": out[:, :, :-2], "k_proj": out[:, :, -2], "v_proj": out[:, :, -1]}
    config = {"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": heads * width}
    table = _internlm2_modules(config)["model.layers.{n}.attention.wqkv"]
    for name, rows in table.items():
        found = x @ LazyTensor(fused, rows=rows).read().T
        torch.testing.assert_close(found, expected[name.rpartition(".")[2]].reshape(7, -1))


@torch.no_grad()
def test_dynamic_rotation_of_internlm2(tmp_path, load):
    """Beyond its length the base grows: base * (factor * T / length - factor + 1) ^ (d / (d - 2))."""
    native, config = make_internlm2(max_position_embeddings=10, rope_scaling={"type": "dynamic", "factor": 2.0})
    model = load(write(tmp_path, config, internlm2(native.state_dict(), LAYERS, groups=2, width=8)))
    short = IDS[:, :10]
    torch.testing.assert_close(model(short).logits, native(short).logits, atol=1e-5, rtol=0)
    stretched = native.config.to_dict()
    base = 1e6 * (2 * IDS.shape[1] / 10 - 1) ** (8 / 6)
    stretched["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
    expected = LlamaForCausalLM(LlamaConfig.from_dict(stretched)).eval()
    expected.load_state_dict(native.state_dict())
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, atol=1e-5, rtol=0)


def test_xverse_converts_to_equal_logits(tmp_path, load):
    config = LlamaConfig(
        **SIZES, hidden_size=48, intermediate_size=56, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-6
    )
    native = random_model(LlamaForCausalLM, config)
    original = SIZES | {
        "model_type": "xverse", "architectures": ["XverseForCausalLM"], "hidden_size": 48, "intermediate_size": 56,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "auto_map": {"AutoModelForCausalLM": "modeling_xverse.XverseForCausalLM"},
    }  # fmt: skip
    tensors = native.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    check(write(tmp_path, original, tensors), load, native)


def make_qwen(*, first: bool) -> tuple[Any, dict[str, Any]]:
    config = Qwen2Config(
        **SIZES, hidden_size=48, intermediate_size=56, num_attention_heads=6, num_key_value_heads=6,
        max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    original: dict[str, Any] = {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "kv_channels": 8, "layer_norm_epsilon": 1e-5,
        "rotary_emb_base": 500, "no_bias": True, "bf16": True, "tie_word_embeddings": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    }  # fmt: skip
    if first:
        original |= {
            "n_embd": 48, "n_head": 6, "n_layer": LAYERS, "ffn_hidden_size": 112, "n_inner": None,
            "padded_vocab_size": 96, "vocab_size": 90, "n_positions": 64,
        }  # fmt: skip
    else:
        original |= {
            "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": LAYERS, "intermediate_size": 112,
            "vocab_size": 96, "max_position_embeddings": 64, "seq_length": 32,
        }  # fmt: skip
    return random_model(Qwen2ForCausalLM, config), original


@pytest.mark.parametrize("first", [True, False])
def test_both_spellings_of_qwen(tmp_path, load, first):
    native, config = make_qwen(first=first)
    folder = write(tmp_path, config, qwen(native.state_dict(), LAYERS))
    check(folder, load, native)
    found = native_config(folder)
    assert found.dtype is torch.bfloat16
    assert found.max_position_embeddings == 64


def test_what_generation_config_says_comes_along(tmp_path, load):
    native, config = make_qwen(first=False)
    folder = write(tmp_path, config, qwen(native.state_dict(), LAYERS))
    said = {"chat_format": "chatml", "eos_token_id": 43, "pad_token_id": 43, "top_p": 0.8, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(said))
    found = load(folder).generation_config
    assert (found.eos_token_id, found.top_p, found.chat_format) == (43, 0.8, "chatml")


def test_qwen_vl_is_loaded_as_text(tmp_path, load):
    native, config = make_qwen(first=False)
    config["visual"] = {"heads": 2, "image_size": 8}
    tensors = qwen(native.state_dict(), LAYERS) | {
        "transformer.visual.conv1.weight": torch.ones(2, 3, 2, 2),
        "transformer.visual.transformer.resblocks.0.attn.in_proj.weight": torch.ones(6, 2),
    }
    check(write(tmp_path / "qwen-vl", config, tensors), load, native)


@torch.no_grad()
def test_baichuan2_13b_converts_to_equal_logits(tmp_path, load):
    """ALiBi with a number of heads that is no power of two, and a head whose rows are normalised."""
    config = LlamaAlibiConfig(**SIZES, hidden_size=40, intermediate_size=56, num_attention_heads=5)
    native = random_model(LlamaAlibiForCausalLM, config)
    lengths = torch.rand(96, 1) + 0.5
    native.lm_head.weight.copy_(torch.nn.functional.normalize(native.lm_head.weight))
    original = SIZES | {
        "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_size": 40, "z_loss_weight": 0,
        "intermediate_size": 56, "num_attention_heads": 5, "model_max_length": 64, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    tensors = baichuan(native.state_dict(), LAYERS)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * lengths
    check(write(tmp_path / "second", original, tensors), load, native)
    del original["z_loss_weight"]
    check(write(tmp_path / "lost", original | {"tokenizer_class": "BaichuanTokenizer"}, tensors), load, native)
    first = {"architectures": ["BaiChuanForCausalLM"], "tokenizer_class": "BaichuanTokenizer"}
    both = write(tmp_path / "both", original | first, tensors)
    with pytest.raises(ModelError, match=r"it is a Baichuan2 \(tokenizer_class\) and that it is not \(architectures\)"):
        load(both)
    # the first Baichuan takes its head as it is
    model = load(write(tmp_path / "first", original, tensors))
    torch.testing.assert_close(model.lm_head.weight, native.lm_head.weight * lengths)


def test_tensors_that_do_not_fit(tmp_path, load):
    native, config = make_internlm2()
    tensors = internlm2(native.state_dict(), LAYERS, groups=2, width=8)
    with pytest.raises(ModelError, match=r"no InternLM2 checkpoint.*model\.vision\.weight"):
        load(write(tmp_path / "more", config, tensors | {"model.vision.weight": torch.ones(1)}))
    few = {name: tensor for name, tensor in tensors.items() if "layers.1.ffn_norm" not in name}
    with pytest.raises(ModelError, match=r"1 tensor is missing \(model\.layers\.1\.post_attention_layernorm"):
        load(write(tmp_path / "fewer", config, few))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(write(tmp_path / "wider", config | {"intermediate_size": 57}, tensors))
    bias = {"model.layers.0.attention.wo.bias": torch.ones(48)}
    with pytest.raises(ModelError, match=r"1 tensor is left over \(model\.layers\.0\.self_attn\.o_proj\.bias"):
        load(write(tmp_path / "bias", config, tensors | bias))
    folder = write(tmp_path / "shards", config, tensors, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks model-00002"):
        load(folder)
    del config["hidden_size"]
    with pytest.raises(ModelError, match=r"config\.json.*does not say its hidden_size"):
        load(write(tmp_path / "keys", config, tensors))
