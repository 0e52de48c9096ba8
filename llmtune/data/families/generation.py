"""Text generation."""

from llmtune.data.info import register_dataset

register_dataset(
    "advertise-gen-zh",
    dataset_id="lvjianjin/AdvertiseGen",
    hf_dataset_id="shibing624/AdvertiseGen",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.generation:advertise_gen",
    languages=("zh",),
    tags=("generation",),
    rows=98_399,
    source="https://modelscope.cn/datasets/lvjianjin/AdvertiseGen",
    aliases=("advertise-gen",),
)
register_dataset(
    "dureader-robust-zh",
    dataset_id="modelscope/DuReader_robust-QG",
    train_splits=("train", "validation"),
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.generation:dureader_question",
    languages=("zh",),
    tags=("generation",),
    rows=17_899,
    source="https://modelscope.cn/datasets/modelscope/DuReader_robust-QG",
)
register_dataset(
    "poetry-zh",
    dataset_id="modelscope/chinese-poetry-collection",
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.generation:poetry",
    languages=("zh",),
    tags=("generation", "poetry"),
    rows=390_309,
    source="https://modelscope.cn/datasets/modelscope/chinese-poetry-collection",
)
