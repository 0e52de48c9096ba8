"""Medical questions."""

from llmtune.data.info import register_dataset

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
