"""Mathematics."""

from llmtune.data.info import ONLY, register_dataset

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
    preprocess="llmtune.data.preprocess.alpaca:alpaca",
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
