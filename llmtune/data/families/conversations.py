"""Instructions with one answer per row, multi-turn conversations, the model's identity, and function calls."""

from __future__ import annotations

from llmtune.data.info import register_dataset

ALPACA = "llmtune.data.preprocess.single_turn:alpaca"

# One question, one answer per row

register_dataset(
    "alpaca-en",
    dataset_id="AI-ModelScope/alpaca-gpt4-data-en",
    hf_dataset_id="vicgalle/alpaca-gpt4",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "general"),
    rows=52_002,
    aliases=("alpaca-gpt4-en",),
)
register_dataset(
    "alpaca-zh",
    dataset_id="AI-ModelScope/alpaca-gpt4-data-zh",
    hf_dataset_id="llm-wizard/alpaca-gpt4-data-zh",
    preprocess="llmtune.data.preprocess.single_turn:alpaca_zh",
    languages=("zh",),
    tags=("chat", "general"),
    rows=48_818,
    aliases=("alpaca-gpt4-zh",),
)
register_dataset(
    "multi-alpaca-all",
    dataset_id="damo/nlp_polylm_multialpaca_sft",
    subsets=("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi"),
    preprocess=ALPACA,
    languages=("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi"),
    tags=("chat", "general"),
    rows=131_867,
    aliases=("multi-alpaca",),
)
register_dataset(
    "instinwild-en",
    dataset_id="wyj123456/instinwild",
    subsets=("subset",),
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "general"),
    rows=52_191,
)
register_dataset(
    "instinwild-zh",
    dataset_id="wyj123456/instinwild",
    subsets=("default",),
    preprocess=ALPACA,
    languages=("zh",),
    tags=("chat", "general"),
    rows=51_504,
)
register_dataset(
    "cot-en",
    dataset_id="YorickHe/CoT",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "reasoning"),
    rows=74_771,
)
register_dataset(
    "cot-zh",
    dataset_id="YorickHe/CoT_zh",
    preprocess=ALPACA,
    languages=("zh",),
    tags=("chat", "reasoning"),
    rows=74_771,
)
register_dataset(
    "firefly-all-zh",
    dataset_id="wyj123456/firefly",
    hf_dataset_id="YeungNLP/firefly-train-1.1M",
    files=("firefly-train-1.1M.jsonl",),
    preprocess="llmtune.data.preprocess.single_turn:firefly",
    languages=("zh",),
    tags=("chat", "general"),
    rows=1_649_399,
)
register_dataset(
    "instruct-en",
    dataset_id="wyj123456/instruct",
    preprocess="llmtune.data.preprocess.single_turn:instruct",
    languages=("en",),
    tags=("chat", "general"),
    rows=888_970,
)
register_dataset(
    "gpt4all-en",
    dataset_id="wyj123456/GPT4all",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "general"),
    rows=806_199,
)
register_dataset(
    "finance-en",
    dataset_id="wyj123456/finance_en",
    hf_dataset_id="ssbuild/alpaca_finance_en",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "finance"),
    rows=68_911,
)


# Multi-turn conversations, and the model's identity

register_dataset(
    "sharegpt-en",
    dataset_id="huangjintao/sharegpt",
    subsets=("common-en", "computer-en"),
    languages=("en",),
    tags=("chat", "multi-turn"),
    rows=99_799,
)
register_dataset(
    "sharegpt-zh",
    dataset_id="huangjintao/sharegpt",
    subsets=("common-zh", "computer-zh", "unknow-zh"),
    languages=("zh",),
    tags=("chat", "multi-turn"),
    rows=135_399,
    aliases=("sharegpt_zh",),
)
register_dataset(
    "sharegpt-gpt4",
    dataset_id="AI-ModelScope/sharegpt_gpt4",
    subsets=("default", "V3_format", "zh_38K_format"),
    languages=("en", "zh"),
    tags=("chat", "multi-turn"),
)
register_dataset(
    "self-cognition",
    dataset_id="swift/self-cognition",
    hf_dataset_id="modelscope/self-cognition",
    languages=("en", "zh"),
    tags=("chat", "identity"),
)
register_dataset(
    "ultrachat-200k",
    dataset_id="swift/ultrachat_200k",
    hf_dataset_id="HuggingFaceH4/ultrachat_200k",
    train_splits=("train_sft",),
    val_splits=("test_sft",),
    languages=("en",),
    tags=("chat", "multi-turn"),
    rows=230_975,
    source="https://huggingface.co/datasets/HuggingFaceH4/ultrachat_200k",
    aliases=("ultrachat",),
)
register_dataset(
    "openhermes-2.5",
    dataset_id="swift/OpenHermes-2.5",
    hf_dataset_id="teknium/OpenHermes-2.5",
    languages=("en",),
    tags=("chat", "general"),
    rows=1_001_551,
    source="https://huggingface.co/datasets/teknium/OpenHermes-2.5",
)
register_dataset(
    "tulu-3-sft",
    dataset_id="AI-ModelScope/tulu-3-sft-mixture",
    hf_dataset_id="allenai/tulu-3-sft-mixture",
    languages=("en",),
    tags=("chat", "general", "multi-turn"),
    rows=939_343,
    verified=False,  # the id on ModelScope
    source="https://huggingface.co/datasets/allenai/tulu-3-sft-mixture",
)


# Plugins and function calls

register_dataset(
    "damo-agent-zh",
    dataset_id="damo/MSAgent-Bench",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.agent:msagent",
    languages=("zh",),
    tags=("agent", "multi-turn"),
    rows=422_276,
)
register_dataset(
    "damo-agent-mini-zh",
    dataset_id="damo/MSAgent-Bench",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.agent:msagent_mini",
    languages=("zh",),
    tags=("agent", "multi-turn"),
    rows=40_116,
)
register_dataset(
    "glaive-function-calling-v2",
    hf_dataset_id="glaiveai/glaive-function-calling-v2",
    preprocess="llmtune.data.preprocess.functions:glaive",
    languages=("en",),
    tags=("agent", "function-calling", "multi-turn"),
    rows=112_960,
)
register_dataset(
    "glaive-toolcall-en",
    hf_dataset_id="llamafactory/glaive_toolcall_en",
    languages=("en",),
    tags=("agent", "function-calling", "multi-turn"),
    verified=False,
)
register_dataset(
    "glaive-toolcall-zh",
    hf_dataset_id="llamafactory/glaive_toolcall_zh",
    languages=("zh",),
    tags=("agent", "function-calling", "multi-turn"),
    verified=False,
)
