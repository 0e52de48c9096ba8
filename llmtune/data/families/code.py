"""Code and SQL."""

from __future__ import annotations

from llmtune.data.info import ONLY, register_dataset

ALPACA = "llmtune.data.preprocess.single_turn:alpaca"

register_dataset(
    "code-en",
    dataset_id="wyj123456/code_alpaca_en",
    hf_dataset_id="sahil2801/CodeAlpaca-20k",
    preprocess=ALPACA,
    languages=("en",),
    tags=("code",),
    rows=20_016,
    source="https://modelscope.cn/datasets/wyj123456/code_alpaca_en",
    aliases=("code-alpaca-en",),
)
register_dataset(
    "code-python-zh",
    dataset_id="codefuse-ai/CodeExercise-Python-27k",
    hf_dataset_id="codefuse-ai/CodeExercise-Python-27k",
    train_splits=ONLY,
    columns={"chat_rounds": "messages"},
    languages=("zh",),
    tags=("code",),
    rows=27_224,
    source="https://modelscope.cn/datasets/codefuse-ai/CodeExercise-Python-27k",
    aliases=("codefuse-python-en",),
)
register_dataset(
    "leetcode-python-en",
    dataset_id="AI-ModelScope/leetcode-solutions-python",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.single_turn:leetcode",
    languages=("en",),
    tags=("code",),
    rows=2_359,
    source="https://modelscope.cn/datasets/AI-ModelScope/leetcode-solutions-python",
)
register_dataset(
    "text2sql-en",
    dataset_id="AI-ModelScope/texttosqlv2_25000_v2",
    hf_dataset_id="Clinton/texttosqlv2_25000_v2",
    train_splits=ONLY,
    preprocess=ALPACA,
    languages=("en",),
    tags=("sql",),
    rows=25_000,
    source="https://modelscope.cn/datasets/AI-ModelScope/texttosqlv2_25000_v2",
)
register_dataset(
    "sql-create-context-en",
    dataset_id="AI-ModelScope/sql-create-context",
    hf_dataset_id="b-mc2/sql-create-context",
    train_splits=ONLY,
    columns={"question": "instruction", "context": "input", "answer": "output"},
    preprocess=ALPACA,
    languages=("en",),
    tags=("sql",),
    rows=78_577,
    source="https://modelscope.cn/datasets/AI-ModelScope/sql-create-context",
)


# Mathematics


register_dataset(
    "blossom-math-zh",
    dataset_id="AI-ModelScope/blossom-math-v2",
    hf_dataset_id="Azure99/blossom-math-v2",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.single_turn:blossom_math",
    languages=("zh",),
    tags=("chat", "math"),
    rows=10_000,
    source="https://modelscope.cn/datasets/AI-ModelScope/blossom-math-v2",
)
register_dataset(
    "school-math-zh",
    dataset_id="AI-ModelScope/school_math_0.25M",
    hf_dataset_id="BelleGroup/school_math_0.25M",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.single_turn:alpaca",
    languages=("zh",),
    tags=("chat", "math"),
    rows=248_480,
    source="https://modelscope.cn/datasets/AI-ModelScope/school_math_0.25M",
)
register_dataset(
    "numinamath-cot",
    dataset_id="AI-ModelScope/NuminaMath-CoT",
    hf_dataset_id="AI-MO/NuminaMath-CoT",
    val_splits=("test",),
    languages=("en",),
    tags=("math", "reasoning"),
    source="https://huggingface.co/datasets/AI-MO/NuminaMath-CoT",
)
