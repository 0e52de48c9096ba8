"""General instructions: one question, one answer per row."""

from llmtune.data.info import register_dataset

ALPACA = "llmtune.data.preprocess.single_turn:alpaca"

register_dataset(
    "alpaca-en",
    dataset_id="AI-ModelScope/alpaca-gpt4-data-en",
    hf_dataset_id="vicgalle/alpaca-gpt4",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "general"),
    rows=52_002,
    source="https://modelscope.cn/datasets/AI-ModelScope/alpaca-gpt4-data-en",
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
    source="https://modelscope.cn/datasets/AI-ModelScope/alpaca-gpt4-data-zh",
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
    source="https://modelscope.cn/datasets/damo/nlp_polylm_multialpaca_sft",
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
    source="https://modelscope.cn/datasets/wyj123456/instinwild",
)
register_dataset(
    "instinwild-zh",
    dataset_id="wyj123456/instinwild",
    subsets=("default",),
    preprocess=ALPACA,
    languages=("zh",),
    tags=("chat", "general"),
    rows=51_504,
    source="https://modelscope.cn/datasets/wyj123456/instinwild",
)
register_dataset(
    "cot-en",
    dataset_id="YorickHe/CoT",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "reasoning"),
    rows=74_771,
    source="https://modelscope.cn/datasets/YorickHe/CoT",
)
register_dataset(
    "cot-zh",
    dataset_id="YorickHe/CoT_zh",
    preprocess=ALPACA,
    languages=("zh",),
    tags=("chat", "reasoning"),
    rows=74_771,
    source="https://modelscope.cn/datasets/YorickHe/CoT_zh",
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
    source="https://modelscope.cn/datasets/wyj123456/firefly",
)
register_dataset(
    "instruct-en",
    dataset_id="wyj123456/instruct",
    preprocess="llmtune.data.preprocess.single_turn:instruct",
    languages=("en",),
    tags=("chat", "general"),
    rows=888_970,
    source="https://modelscope.cn/datasets/wyj123456/instruct",
)
register_dataset(
    "gpt4all-en",
    dataset_id="wyj123456/GPT4all",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "general"),
    rows=806_199,
    source="https://modelscope.cn/datasets/wyj123456/GPT4all",
)
register_dataset(
    "finance-en",
    dataset_id="wyj123456/finance_en",
    hf_dataset_id="ssbuild/alpaca_finance_en",
    preprocess=ALPACA,
    languages=("en",),
    tags=("chat", "finance"),
    rows=68_911,
    source="https://modelscope.cn/datasets/wyj123456/finance_en",
)
