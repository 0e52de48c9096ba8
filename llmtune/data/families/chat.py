"""Multi-turn conversations, and datasets about the model's identity."""

from __future__ import annotations

from llmtune.data.info import register_dataset

register_dataset(
    "sharegpt-en",
    dataset_id="huangjintao/sharegpt",
    subsets=("common-en", "computer-en"),
    languages=("en",),
    tags=("chat", "multi-turn"),
    rows=99_799,
    source="https://modelscope.cn/datasets/huangjintao/sharegpt",
)
register_dataset(
    "sharegpt-zh",
    dataset_id="huangjintao/sharegpt",
    subsets=("common-zh", "computer-zh", "unknow-zh"),
    languages=("zh",),
    tags=("chat", "multi-turn"),
    rows=135_399,
    source="https://modelscope.cn/datasets/huangjintao/sharegpt",
    aliases=("sharegpt_zh",),
)
register_dataset(
    "sharegpt-gpt4",
    dataset_id="AI-ModelScope/sharegpt_gpt4",
    subsets=("default", "V3_format", "zh_38K_format"),
    languages=("en", "zh"),
    tags=("chat", "multi-turn"),
    source="https://modelscope.cn/datasets/AI-ModelScope/sharegpt_gpt4",
)
register_dataset(
    "self-cognition",
    dataset_id="swift/self-cognition",
    hf_dataset_id="modelscope/self-cognition",
    languages=("en", "zh"),
    tags=("chat", "identity"),
    source="https://modelscope.cn/datasets/swift/self-cognition",
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
    source="https://modelscope.cn/datasets/damo/MSAgent-Bench",
)
register_dataset(
    "damo-agent-mini-zh",
    dataset_id="damo/MSAgent-Bench",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.agent:msagent_mini",
    languages=("zh",),
    tags=("agent", "multi-turn"),
    rows=40_116,
    source="https://modelscope.cn/datasets/damo/MSAgent-Bench",
)
register_dataset(
    "glaive-function-calling-v2",
    hf_dataset_id="glaiveai/glaive-function-calling-v2",
    preprocess="llmtune.data.preprocess.functions:glaive",
    languages=("en",),
    tags=("agent", "function-calling", "multi-turn"),
    rows=112_960,
    source="https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2",
)
register_dataset(
    "glaive-toolcall-en",
    hf_dataset_id="llamafactory/glaive_toolcall_en",
    languages=("en",),
    tags=("agent", "function-calling", "multi-turn"),
    verified=False,
    source="https://huggingface.co/datasets/llamafactory/glaive_toolcall_en",
)
register_dataset(
    "glaive-toolcall-zh",
    hf_dataset_id="llamafactory/glaive_toolcall_zh",
    languages=("zh",),
    tags=("agent", "function-calling", "multi-turn"),
    verified=False,
    source="https://huggingface.co/datasets/llamafactory/glaive_toolcall_zh",
)
