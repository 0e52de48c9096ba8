"""Classification and generation tasks."""

from __future__ import annotations

from llmtune.data.info import ONLY, register_dataset

PROMPT_AND_ANSWER = {"prompt": "query", "answer": "response"}

register_dataset(
    "cmnli-zh",
    dataset_id="modelscope/clue",
    hf_dataset_id="clue/clue",
    subsets=("cmnli",),
    train_splits=("train", "validation"),
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.single_turn:cmnli",
    languages=("zh",),
    tags=("classification",),
    rows=417_904,
    source="https://modelscope.cn/datasets/modelscope/clue",
)
register_dataset(
    "jd-zh",
    dataset_id="DAMO_NLP/jd",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.single_turn:jd_sentiment",
    languages=("zh",),
    tags=("classification", "sentiment"),
    rows=50_000,
    source="https://modelscope.cn/datasets/DAMO_NLP/jd",
    aliases=("jd-sentiment-zh",),
)
register_dataset(
    "cls-fudan-news-zh",
    dataset_id="damo/zh_cls_fudan-news",
    train_splits=ONLY,
    columns=PROMPT_AND_ANSWER,
    languages=("zh",),
    tags=("classification", "news"),
    rows=4_959,
    source="https://modelscope.cn/datasets/damo/zh_cls_fudan-news",
)
register_dataset(
    "ner-jave-zh",
    dataset_id="damo/zh_ner-JAVE",
    train_splits=ONLY,
    columns=PROMPT_AND_ANSWER,
    languages=("zh",),
    tags=("entities",),
    rows=1_266,
    source="https://modelscope.cn/datasets/damo/zh_ner-JAVE",
)


# Text generation


register_dataset(
    "advertise-gen-zh",
    dataset_id="lvjianjin/AdvertiseGen",
    hf_dataset_id="shibing624/AdvertiseGen",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.single_turn:advertise_gen",
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
    preprocess="llmtune.data.preprocess.single_turn:dureader_question",
    languages=("zh",),
    tags=("generation",),
    rows=17_899,
    source="https://modelscope.cn/datasets/modelscope/DuReader_robust-QG",
)
register_dataset(
    "poetry-zh",
    dataset_id="modelscope/chinese-poetry-collection",
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.single_turn:poetry",
    languages=("zh",),
    tags=("generation", "poetry"),
    rows=390_309,
    source="https://modelscope.cn/datasets/modelscope/chinese-poetry-collection",
)
