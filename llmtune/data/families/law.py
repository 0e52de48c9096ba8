"""Legal questions, and texts of laws."""

from llmtune.data.info import ONLY, register_dataset

register_dataset(
    "lawyer-llama-zh",
    dataset_id="AI-ModelScope/lawyer_llama_data",
    hf_dataset_id="Skepsun/lawyer_llama_data",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.single_turn:lawyer_llama",
    languages=("zh",),
    tags=("chat", "law"),
    rows=21_476,
    source="https://modelscope.cn/datasets/AI-ModelScope/lawyer_llama_data",
)
register_dataset(
    "tigerbot-law-zh",
    dataset_id="AI-ModelScope/tigerbot-law-plugin",
    hf_dataset_id="TigerResearch/tigerbot-law-plugin",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.generation:tigerbot_law",
    languages=("zh",),
    tags=("pretraining", "law"),
    rows=55_895,
    source="https://modelscope.cn/datasets/AI-ModelScope/tigerbot-law-plugin",
)
