"""Every model of the catalogue: its facts, and that a model of its class loads, takes LoRA and computes."""

from __future__ import annotations

import operator
import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from llmtune.models.info import AUTO, MODEL_MAPPING
from llmtune.models.ports.load import find_port
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.tuners.targets import target_modules

QKV = "q_proj k_proj v_proj"
REFERENCE = f"""
qwen-7b                   qwen/Qwen-7B                             default-generation      c_attn
qwen-7b-chat              qwen/Qwen-7B-Chat                        chatml                  c_attn
qwen-14b                  qwen/Qwen-14B                            default-generation      c_attn
qwen-14b-chat             qwen/Qwen-14B-Chat                       chatml                  c_attn
qwen-7b-chat-int4         qwen/Qwen-7B-Chat-Int4                   chatml                  c_attn
qwen-14b-chat-int4        qwen/Qwen-14B-Chat-Int4                  chatml                  c_attn
qwen-7b-chat-int8         qwen/Qwen-7B-Chat-Int8                   chatml                  c_attn
qwen-14b-chat-int8        qwen/Qwen-14B-Chat-Int8                  chatml                  c_attn
qwen-vl                   qwen/Qwen-VL                             default-generation      c_attn
qwen-vl-chat              qwen/Qwen-VL-Chat                        chatml                  c_attn
qwen-vl-chat-int4         qwen/Qwen-VL-Chat-Int4                   chatml                  c_attn
baichuan-7b               baichuan-inc/baichuan-7B                 default-generation      W_pack
baichuan-13b              baichuan-inc/Baichuan-13B-Base           default-generation      W_pack
baichuan-13b-chat         baichuan-inc/Baichuan-13B-Chat           baichuan                W_pack
baichuan2-7b              baichuan-inc/Baichuan2-7B-Base           default-generation      W_pack
baichuan2-7b-chat         baichuan-inc/Baichuan2-7B-Chat           baichuan                W_pack
baichuan2-7b-chat-int4    baichuan-inc/Baichuan2-7B-Chat-4bits     baichuan                W_pack
baichuan2-13b             baichuan-inc/Baichuan2-13B-Base          default-generation      W_pack
baichuan2-13b-chat        baichuan-inc/Baichuan2-13B-Chat          baichuan                W_pack
baichuan2-13b-chat-int4   baichuan-inc/Baichuan2-13B-Chat-4bits    baichuan                W_pack
chatglm2-6b               ZhipuAI/chatglm2-6b                      chatglm2                query_key_value
chatglm2-6b-32k           ZhipuAI/chatglm2-6b-32k                  chatglm2                query_key_value
llama2-7b                 modelscope/Llama-2-7b-ms                 default-generation-bos  {QKV}
llama2-13b                modelscope/Llama-2-13b-ms                default-generation-bos  {QKV}
llama2-70b                modelscope/Llama-2-70b-ms                default-generation-bos  {QKV}
llama2-7b-chat            modelscope/Llama-2-7b-chat-ms            llama                   {QKV}
llama2-13b-chat           modelscope/Llama-2-13b-chat-ms           llama                   {QKV}
llama2-70b-chat           modelscope/Llama-2-70b-chat-ms           llama                   {QKV}
openbuddy-llama2-13b-chat OpenBuddy/openbuddy-llama2-13b-v8.1-fp16 openbuddy               {QKV}
openbuddy-llama-65b-chat  OpenBuddy/openbuddy-llama-65b-v8-bf16    openbuddy               {QKV}
openbuddy-llama2-70b-chat OpenBuddy/openbuddy-llama2-70b-v10.1-bf16 openbuddy              {QKV}
openbuddy-mistral-7b-chat OpenBuddy/openbuddy-mistral-7b-v13.1     openbuddy               {QKV}
internlm-7b               Shanghai_AI_Laboratory/internlm-7b       default-generation-bos  {QKV}
internlm-7b-chat          Shanghai_AI_Laboratory/internlm-chat-7b-v1_1 internlm            {QKV}
internlm-7b-chat-8k       Shanghai_AI_Laboratory/internlm-chat-7b-8k internlm              {QKV}
internlm-20b              Shanghai_AI_Laboratory/internlm-20b      default-generation-bos  {QKV}
internlm-20b-chat         Shanghai_AI_Laboratory/internlm-chat-20b internlm                {QKV}
xverse-7b                 xverse/XVERSE-7B                         default-generation      {QKV}
xverse-7b-chat            xverse/XVERSE-7B-Chat                    xverse                  {QKV}
xverse-13b                xverse/XVERSE-13B                        default-generation      {QKV}
xverse-13b-chat           xverse/XVERSE-13B-Chat                   xverse                  {QKV}
mistral-7b                AI-ModelScope/Mistral-7B-v0.1            default-generation-bos  {QKV}
mistral-7b-chat           AI-ModelScope/Mistral-7B-Instruct-v0.1   mistral                 {QKV}
ziya2-13b                 Fengshenbang/Ziya2-13B-Base              default-generation-bos  {QKV}
ziya2-13b-chat            Fengshenbang/Ziya2-13B-Chat              ziya                    {QKV}
polylm-13b                damo/nlp_polylm_13b_text_generation      default-generation      c_attn
seqgpt-560m               damo/nlp_seqgpt-560m                     default-generation      query_key_value
"""
REFERENCE_ROWS = [line.split() for line in REFERENCE.strip().splitlines()]

SMALL = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 4}
OTHERS = {
    "MixtralForCausalLM": EXPERTS,
    "GptOssForCausalLM": EXPERTS,
    "Qwen2MoeForCausalLM": EXPERTS,
    "Qwen3MoeForCausalLM": EXPERTS,
    "MiniCPM3ForCausalLM": LATENT | {"q_lora_rank": 16},
    "DeepseekV2ForCausalLM": LATENT | EXPERTS | {
        "q_lora_rank": None, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "GPT2LMHeadModel": {"n_embd": 64, "n_layer": 2, "n_head": 4},
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PORTED = {
    "QWenLMHeadModel": "qwen", "BaiChuanForCausalLM": "baichuan", "BaichuanForCausalLM": "baichuan",
    "ChatGLMModel": "chatglm", "InternLMForCausalLM": "internlm", "InternLM2ForCausalLM": "internlm2",
    "XverseForCausalLM": "xverse",
}  # fmt: skip
RENAMED = {"InternLM3ForCausalLM": "internlm3"}
"""A class that transformers has under the model type alone."""

KEYS = [key for key in MODEL_MAPPING if key != AUTO]


def test_the_counts():
    assert len(REFERENCE_ROWS) == 47
    assert len(KEYS) == EXPECTED
    assert len([key for key in KEYS if not MODEL_MAPPING[key].verified]) < len(KEYS) / 4


EXPECTED = 263


@pytest.mark.parametrize("row", REFERENCE_ROWS, ids=lambda row: row[0])
def test_the_reference_key(row):
    key, model_id, template, *targets = row
    info = MODEL_MAPPING[key]
    assert (info.model_id_or_path, info.template, list(info.lora_target_modules)) == (model_id, template, targets)
    assert info.verified
    if key.startswith("llama2"):
        assert re.match(info.ignore_file_pattern[0], "pytorch_model-00001-of-00002.bin")
    pinned = "fp16" if key.startswith("qwen") and "int" in key else "bf16" if key.endswith("int4") else None
    assert info.torch_dtype == pinned


@pytest.mark.parametrize("key", KEYS)
def test_the_entry(key):
    info = MODEL_MAPPING[key]
    assert info.template in TEMPLATE_MAPPING
    assert re.fullmatch(r"[\w-]+/[\w.-]+", info.model_id_or_path) or info.get_folder
    assert info.hf_model_id is None or re.fullmatch(r"[\w-]+/[\w.-]+", info.hf_model_id)
    assert info.lora_target_modules
    assert info.source
    native = hasattr(transformers, info.architecture) or info.architecture in RENAMED
    assert native != (info.architecture in PORTED), "a class of transformers, or a port, and not both"
    is_chat = re.search(
        r"chat|instruct|-it$|thinking|r1-|qwq|^phi|gpt-oss|smollm3-3b$|tiny|-0414|minicpm3|llava", key
    ) or (re.match(r"qwen3-|chatglm", key) and "base" not in key)
    if not is_chat:
        assert "generation" in info.template, "a base model is no chat model"


CLASS_OF = operator.attrgetter("architecture", "lora_target_modules")
# Those that see have a test of their own, test_vision.py.
CLASSES = sorted({CLASS_OF(info) for key, info in MODEL_MAPPING.items() if key != AUTO and info.images != "native"})
NATIVE = [pair for pair in CLASSES if hasattr(transformers, pair[0])]


@pytest.mark.parametrize(("architecture", "targets"), NATIVE, ids=lambda value: value if isinstance(value, str) else "")
def test_a_small_model_of_the_class(architecture, targets):
    """Loads under the automatic class, has the layers that LoRA adapts, and computes."""
    kind = getattr(transformers, architecture)
    values = SMALL | OTHERS.get(architecture, {})
    if "ConditionalGeneration" in architecture:
        values = {"text_config": SMALL, "vision_config": VISION, "mm_tokens_per_image": 4}
    model = AutoModelForCausalLM.from_config(kind.config_class(**values))
    assert type(model) is kind
    info = next(info for info in MODEL_MAPPING.values() if CLASS_OF(info) == (architecture, targets))
    found = target_modules(model, [], info)
    if "ConditionalGeneration" in architecture:  # the tower has layers of the same names
        assert len(found) == SMALL["num_hidden_layers"] * len(targets)
        assert all(re.fullmatch(rf"model\.language_model\..+\.({'|'.join(targets)})", name) for name in found)
    else:
        assert found == list(targets)
    ids = torch.arange(3, 11)[None]
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


@pytest.mark.parametrize("architecture", sorted(PORTED))
def test_a_ported_class_has_its_port(architecture):
    config = {"model_type": PORTED[architecture], "architectures": [architecture], "multi_query_group_num": 2}
    assert find_port(config) is not None
