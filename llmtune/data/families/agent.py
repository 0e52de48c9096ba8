"""Plugins and function calls."""

from llmtune.data.info import register_dataset

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
