"""Law, medicine and pictures."""

from __future__ import annotations

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
    preprocess="llmtune.data.preprocess.single_turn:tigerbot_law",
    languages=("zh",),
    tags=("pretraining", "law"),
    rows=55_895,
    source="https://modelscope.cn/datasets/AI-ModelScope/tigerbot-law-plugin",
)


# Medical questions


MEDICAL_ZH = {"instruction": "query", "output": "response"}

register_dataset(
    "medical-en",
    dataset_id="huangjintao/medical_zh",
    subsets=("en",),
    train_splits=("train", "val"),
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.single_turn:medical_en",
    languages=("en",),
    tags=("chat", "medical"),
    rows=117_617,
    source="https://modelscope.cn/datasets/huangjintao/medical_zh",
)
register_dataset(
    "medical-zh",
    dataset_id="huangjintao/medical_zh",
    subsets=("zh",),
    train_splits=("train", "val"),
    val_splits=("test",),
    columns=MEDICAL_ZH,
    languages=("zh",),
    tags=("chat", "medical"),
    rows=1_950_972,
    source="https://modelscope.cn/datasets/huangjintao/medical_zh",
)
register_dataset(
    "medical-mini-zh",
    dataset_id="huangjintao/medical_zh",
    subsets=("zh",),
    train_splits=("train", "val"),
    val_splits=("test",),
    columns=MEDICAL_ZH,
    sample=100_000,
    languages=("zh",),
    tags=("chat", "medical"),
    rows=100_500,
    source="https://modelscope.cn/datasets/huangjintao/medical_zh",
)


# Images with captions or questions


register_dataset(
    "coco-en",
    dataset_id="modelscope/coco_2014_caption",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.single_turn:coco_caption",
    languages=("en",),
    tags=("vision", "caption"),
    rows=454_617,
    source="https://modelscope.cn/datasets/modelscope/coco_2014_caption",
)
