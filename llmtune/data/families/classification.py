"""Classification and named-entity recognition."""

from llmtune.data.info import ONLY, register_dataset

PROMPT_AND_ANSWER = {"prompt": "query", "answer": "response"}

register_dataset(
    "cmnli-zh",
    dataset_id="modelscope/clue",
    hf_dataset_id="clue/clue",
    subsets=("cmnli",),
    train_splits=("train", "validation"),
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.classification:cmnli",
    languages=("zh",),
    tags=("classification",),
    rows=417_904,
    source="https://modelscope.cn/datasets/modelscope/clue",
)
register_dataset(
    "jd-zh",
    dataset_id="DAMO_NLP/jd",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.classification:jd_sentiment",
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
