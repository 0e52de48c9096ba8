"""Datasets of one subject or task: code, SQL, mathematics, law, medicine, classification, generation, images."""

from __future__ import annotations

from llmtune.data.families.conversations import ALPACA
from llmtune.data.info import ONLY, register_dataset

PROMPT_AND_ANSWER = {"prompt": "query", "answer": "response"}
MEDICAL_ZH = {"instruction": "query", "output": "response"}

# Code and SQL

register_dataset(
    "code-en",
    dataset_id="wyj123456/code_alpaca_en",
    hf_dataset_id="sahil2801/CodeAlpaca-20k",
    preprocess=ALPACA,
    languages=("en",),
    tags=("code",),
    rows=20_016,
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
)
register_dataset(
    "school-math-zh",
    dataset_id="AI-ModelScope/school_math_0.25M",
    hf_dataset_id="BelleGroup/school_math_0.25M",
    train_splits=ONLY,
    preprocess=ALPACA,
    languages=("zh",),
    tags=("chat", "math"),
    rows=248_480,
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


# Law

register_dataset(
    "lawyer-llama-zh",
    dataset_id="AI-ModelScope/lawyer_llama_data",
    hf_dataset_id="Skepsun/lawyer_llama_data",
    train_splits=ONLY,
    preprocess="llmtune.data.preprocess.single_turn:lawyer_llama",
    languages=("zh",),
    tags=("chat", "law"),
    rows=21_476,
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
)


# Medical questions

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
)


# Classification

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
)
register_dataset(
    "jd-zh",
    dataset_id="DAMO_NLP/jd",
    val_splits=("validation",),
    preprocess="llmtune.data.preprocess.single_turn:jd_sentiment",
    languages=("zh",),
    tags=("classification", "sentiment"),
    rows=50_000,
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
)
register_dataset(
    "ner-jave-zh",
    dataset_id="damo/zh_ner-JAVE",
    train_splits=ONLY,
    columns=PROMPT_AND_ANSWER,
    languages=("zh",),
    tags=("entities",),
    rows=1_266,
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
)
register_dataset(
    "poetry-zh",
    dataset_id="modelscope/chinese-poetry-collection",
    val_splits=("test",),
    preprocess="llmtune.data.preprocess.single_turn:poetry",
    languages=("zh",),
    tags=("generation", "poetry"),
    rows=390_309,
)
