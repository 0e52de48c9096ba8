"""Names of chat templates in other tools, and ours that write the same text.

`auto` is the tokenizer's own chat template: what their template of that family imitates. Templates that no model
ships (alpaca, vicuna) are ours of that name.
"""

from __future__ import annotations

AUTO = "auto"
LLAMA_FACTORY: dict[str, str] = {
    **{name: name for name in ("alpaca", "vicuna", "llama3", "qwen3", "smollm2", "glm4", "chatglm3", "phi4", "yi")},
    "qwen": "qwen2.5",
    "qwen3_nothink": "qwen3-instruct",
    "chatml": "qwen3-instruct",
    "qwen2_vl": "qwen2-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_nothink": "qwen3-vl",
    "mistral": "mistral-v3",
    "ministral": "mistral-nemo",
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), "gemma3"),
    "phi": "phi3",
    "phi4_mini": "phi4-mini",
    "deepseek": "deepseek-v2",
    "deepseekr1": "deepseek-r1",
    "empty": "default-generation",
    **dict.fromkeys((
        *("bailing", "bailing_v2", "breeze", "cohere", "cpm4", "dbrx", "deepseek3", "hy3", "deepseekcoder", "dots_ocr"),
        *("ernie", "ernie_nothink", "ernie_vl", "exaone", "falcon", "falcon_h1", "gemma3n", "gemma4", "gemma4n"),
        *("glm4_moe", "glm4v", "glm4_5v", "glm_ocr", "glm4_7", "glmz1", "gpt_oss", "granite3", "granite3_vision"),
        *("granite4", "hunyuan", "hunyuan_small", "intern2", "intern_vl", "intern_s1", "keye_vl", "kimi_vl", "lfm2"),
        *("lfm2_vl", "llama2", "llama4", "llava", "mllama", "moonlight", "llava_next", "llava_next_llama3"),
        *("llava_next_mistral", "llava_next_qwen", "llava_next_yi", "mimo", "mimo_v2", "mimo_vl", "minicpm_v"),
        *("minicpm_v_4_6", "minicpm_o", "minimax1", "minimax2", "mistral_small", "ministral3", "olmo", "paligemma"),
        *("paligemma_chat", "phi_small", "pixtral", "qwen2_omni", "qwen3_omni", "qwen3_omni_nothink", "qwen3_5"),
        *("qwen3_5_nothink", "qwen3_6", "sailor", "seed_coder", "seed_oss", "smollm", "solar", "telechat2", "yi_vl"),
        *("youtu", "youtu_vl", "zephyr"),
    ), AUTO),
}  # fmt: skip
"""Not among them, since they are no model's own and ours have none like them: default, fewshot and the like."""
AXOLOTL: dict[str, str] = {
    **{name: name for name in ("alpaca", "llama3", "qwen3")},
    "tokenizer_default": AUTO,
    "chatml": "qwen3-instruct",
    "qwen_25": "qwen2.5",
    **dict.fromkeys(("gemma", "gemma3"), "gemma3"),
    "mistral_v1": "mistral",
    "mistral_v2v3": "mistral-v3",
    "mistral_v3_tekken": "mistral-nemo",
    **dict.fromkeys(("phi_3", "phi_35"), "phi3"),
    "phi_4": "phi4",
    "deepseek_v2": "deepseek-v2",
    "qwen2_vl": "qwen2-vl",
    **dict.fromkeys((
        *("mistral_v7_tekken", "cohere", "llama3_2_vision", "llama4", "deepseek_v3", "jamba", "exaone", "exaone4"),
        *("pixtral", "llava", "gemma3n", "gemma4", "gemma4_unified", "falcon_h1", "command_a", "command_a_tool_use"),
        *("command_a_rag", "aya", "qwen3_5", "nemotron_h"),
    ), AUTO),
}  # fmt: skip
"""Not among them: jinja, whose text is in the file, and metharme."""
