"""Which configurations have a port, and what stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from llmtune.errors import ModelError
from llmtune.models.ports import causal_lm_loader, find_port, native_config, native_target_modules
from llmtune.models.ports.load import Ported
from llmtune.models.tiny import tiny_folder

GROUPS = {"multi_query_group_num": 2}
BAICHUAN = {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "qwen", "architectures": ["QWenLMHeadModel"]}, "Qwen v1"),
        ({"model_type": "qwen"}, "Qwen v1"),
        (BAICHUAN | {"architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 4096}, "Baichuan 7B"),
        (BAICHUAN | {"model_max_length": 4096}, "Baichuan 13B"),
        (BAICHUAN | {"hidden_size": 5120, "num_hidden_layers": 40, "max_position_embeddings": 4096}, "Baichuan 13B"),
        ({"model_type": "llama_alibi"}, "Baichuan 13B (converted)"),
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"]} | GROUPS, "ChatGLM"),
        ({"model_type": "chatglm", "architectures": ["ChatGLMForConditionalGeneration"]} | GROUPS, "ChatGLM"),
        ({"model_type": "internlm", "architectures": ["InternLMForCausalLM"]}, "InternLM"),
        ({"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]}, "InternLM2"),
        ({"model_type": "xverse", "architectures": ["XverseForCausalLM"]}, "XVERSE"),
        # not ours
        ({"model_type": "chatglm", "architectures": ["ChatGLMModel"], "position_encoding_2d": True}, None),
        ({"model_type": "chatglm", "vision_config": {}} | GROUPS, None),
        ({"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"]}, None),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, None),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_configuration_finds_its_port(config, family):
    port = find_port(config)
    assert (None if port is None else port.family) == family


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "chatglm", "quantization_bit": 4} | GROUPS, "saved in 4 bits"),
        ({"model_type": "chatglm", "add_bias_linear": True} | GROUPS, "add_bias_linear=True"),
        ({"model_type": "qwen", "no_bias": False}, "no_bias=False.*--trust_remote_code true"),
        ({"model_type": "qwen"}, "lacks 'n_head'"),
    ],
)
def test_what_no_native_class_does(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        native_config(tmp_path)


def test_ordinary_models_go_the_ordinary_way(assets):
    assert causal_lm_loader(tiny_folder()) is AutoModelForCausalLM
    assert native_config(tiny_folder()).model_type == "qwen2"
    old = assets / "oracles" / "qwen_v1"
    assert isinstance(causal_lm_loader(old), Ported)
    assert causal_lm_loader(old, trust_remote_code=True) is AutoModelForCausalLM


def test_native_configurations_keep_the_sizes(assets):
    found = native_config(assets / "oracles" / "chatglm2_6b")
    assert (found.model_type, found.num_key_value_heads, found.head_dim) == ("glm", 2, 16)
    found = native_config(assets / "oracles" / "baichuan_13b_v1")
    assert (found.model_type, found.max_position_embeddings) == ("llama_alibi", 64)


@pytest.mark.parametrize(
    ("family", "names", "native"),
    [
        ("qwen_v1", ["c_attn"], ("q_proj", "k_proj", "v_proj")),
        ("qwen_v1", ["c_attn", "c_proj", "w1"], ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "up_proj")),
        ("baichuan2_7b", ["W_pack", "q_proj"], ("q_proj", "k_proj", "v_proj")),
        ("chatglm2_6b", ["query_key_value", "dense"], ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("internlm_v1_7b", ["q_proj", "mine"], ("q_proj", "mine")),
    ],
)
def test_target_modules_are_translated_to_native_names(assets, family, names, native):
    config = json.loads((assets / "oracles" / family / "config.json").read_text())
    assert native_target_modules(config, names) == native
    assert native_target_modules({"model_type": "llama"}, names) == tuple(names)


def test_finding_a_port_imports_no_torch():
    script = (
        "import sys; from llmtune.models.ports import find_port\n"
        "assert find_port({'model_type': 'baichuan'}).family == 'Baichuan 13B'\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
