"""What the catalogue says of its datasets, written down a second time; and `llmtune list datasets`."""

from __future__ import annotations

import re
import subprocess
import sys

from llmtune.cli.main import main
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.loading import load_source

EMBEDDED = ["self-intro", "tiny-qa", "tiny-text", "tiny-pairs", "tiny-labels", "tiny-sums"]
ALIASES = {
    "advertise-gen": "advertise-gen-zh",
    "alpaca-gpt4-en": "alpaca-en",
    "alpaca-gpt4-zh": "alpaca-zh",
    "code-alpaca-en": "code-en",
    "codefuse-python-en": "code-python-zh",
    "jd-sentiment-zh": "jd-zh",
    "multi-alpaca": "multi-alpaca-all",
    "sharegpt_zh": "sharegpt-zh",
    "zhihu_rlhf_3k": "zhihu-rlhf-3k",
    "ultrachat": "ultrachat-200k",
}


def in_catalogue(key: str) -> bool:
    return "families" in DATASET_MAPPING.origin(key)


def test_aliases_name_catalogue_entries():
    for alias, key in ALIASES.items():
        assert DATASET_MAPPING.canonical(alias) == key
        assert DATASET_MAPPING[alias] is DATASET_MAPPING[key]
    assert {alias for alias, key in DATASET_MAPPING.aliases.items() if in_catalogue(key)} == set(ALIASES)


TRAIN, TRAIN_VAL, ONLY = ("train",), ("train", "val"), ()
ORIGINS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "alpaca-en": ("AI-ModelScope/alpaca-gpt4-data-en", (), TRAIN, ()),
    "alpaca-zh": ("AI-ModelScope/alpaca-gpt4-data-zh", (), TRAIN, ()),
    "multi-alpaca-all": ("damo/nlp_polylm_multialpaca_sft", DATASET_MAPPING["multi-alpaca-all"].languages, TRAIN, ()),
    "instinwild-en": ("wyj123456/instinwild", ("subset",), TRAIN, ()),
    "instinwild-zh": ("wyj123456/instinwild", ("default",), TRAIN, ()),
    "cot-en": ("YorickHe/CoT", (), TRAIN, ()),
    "cot-zh": ("YorickHe/CoT_zh", (), TRAIN, ()),
    "firefly-all-zh": ("wyj123456/firefly", (), TRAIN, ()),
    "instruct-en": ("wyj123456/instruct", (), TRAIN, ()),
    "gpt4all-en": ("wyj123456/GPT4all", (), TRAIN, ()),
    "sharegpt-en": ("huangjintao/sharegpt", ("common-en", "computer-en"), TRAIN, ()),
    "sharegpt-zh": ("huangjintao/sharegpt", ("common-zh", "computer-zh", "unknow-zh"), TRAIN, ()),
    "damo-agent-zh": ("damo/MSAgent-Bench", (), TRAIN, ("validation",)),
    "damo-agent-mini-zh": ("damo/MSAgent-Bench", (), TRAIN, ("validation",)),
    "code-en": ("wyj123456/code_alpaca_en", (), TRAIN, ()),
    "code-python-zh": ("codefuse-ai/CodeExercise-Python-27k", (), ONLY, ()),
    "leetcode-python-en": ("AI-ModelScope/leetcode-solutions-python", (), ONLY, ()),
    "medical-en": ("huangjintao/medical_zh", ("en",), TRAIN_VAL, ("test",)),
    "medical-zh": ("huangjintao/medical_zh", ("zh",), TRAIN_VAL, ("test",)),
    "medical-mini-zh": ("huangjintao/medical_zh", ("zh",), TRAIN_VAL, ("test",)),
    "lawyer-llama-zh": ("AI-ModelScope/lawyer_llama_data", (), ONLY, ()),
    "tigerbot-law-zh": ("AI-ModelScope/tigerbot-law-plugin", (), ONLY, ()),
    "blossom-math-zh": ("AI-ModelScope/blossom-math-v2", (), ONLY, ()),
    "school-math-zh": ("AI-ModelScope/school_math_0.25M", (), ONLY, ()),
    "text2sql-en": ("AI-ModelScope/texttosqlv2_25000_v2", (), ONLY, ()),
    "sql-create-context-en": ("AI-ModelScope/sql-create-context", (), ONLY, ()),
    "advertise-gen-zh": ("lvjianjin/AdvertiseGen", (), TRAIN, ("validation",)),
    "dureader-robust-zh": ("modelscope/DuReader_robust-QG", (), ("train", "validation"), ("test",)),
    "cmnli-zh": ("modelscope/clue", ("cmnli",), ("train", "validation"), ("test",)),
    "jd-zh": ("DAMO_NLP/jd", (), TRAIN, ("validation",)),
    "finance-en": ("wyj123456/finance_en", (), TRAIN, ()),
    "poetry-zh": ("modelscope/chinese-poetry-collection", (), TRAIN, ("test",)),
    "cls-fudan-news-zh": ("damo/zh_cls_fudan-news", (), ONLY, ()),
    "ner-jave-zh": ("damo/zh_ner-JAVE", (), ONLY, ()),
    "coco-en": ("modelscope/coco_2014_caption", (), TRAIN, ("validation",)),
    "glaive-function-calling-v2": ("glaiveai/glaive-function-calling-v2", (), TRAIN, ()),
    "glaive-toolcall-en": ("llamafactory/glaive_toolcall_en", (), TRAIN, ()),
    "glaive-toolcall-zh": ("llamafactory/glaive_toolcall_zh", (), TRAIN, ()),
    "numinamath-cot": ("AI-ModelScope/NuminaMath-CoT", (), TRAIN, ("test",)),
    "openhermes-2.5": ("swift/OpenHermes-2.5", (), TRAIN, ()),
    "self-cognition": ("swift/self-cognition", (), TRAIN, ()),
    "sharegpt-gpt4": ("AI-ModelScope/sharegpt_gpt4", ("default", "V3_format", "zh_38K_format"), TRAIN, ()),
    "tulu-3-sft": ("AI-ModelScope/tulu-3-sft-mixture", (), TRAIN, ()),
    "ultrachat-200k": ("swift/ultrachat_200k", (), ("train_sft",), ("test_sft",)),
    "hh-rlhf": ("AI-ModelScope/hh-rlhf", (), TRAIN, ("test",)),
    "ultrafeedback-binarized": ("AI-ModelScope/ultrafeedback_binarized", (), ("train_prefs",), ("test_prefs",)),
    "helpsteer3": ("nvidia/HelpSteer3", ("preference",), TRAIN, ("validation",)),
    "zhihu-rlhf-3k": ("AI-ModelScope/zhihu_rlhf_3k", (), TRAIN, ()),
    "medical-reward": ("shibing624/medical", ("reward",), TRAIN, ("validation",)),
    "kto-mix-14k": ("AI-ModelScope/kto-mix-14k", (), TRAIN, ("test",)),
    "orpo-dpo-mix-40k": ("AI-ModelScope/orpo-dpo-mix-40k", (), TRAIN, ()),
}


def test_ids_and_languages_are_those_written_down_here():
    """The rows of the cases come back whatever the splits are called; so these are written down twice."""
    assert set(ORIGINS) == {key for key in DATASET_MAPPING if in_catalogue(key)} - set(EMBEDDED)
    for key, origin in ORIGINS.items():
        info = DATASET_MAPPING[key]
        assert (info.dataset_id or info.hf_dataset_id, info.subsets, info.train_splits, info.val_splits) == origin
    assert ORIGINS["multi-alpaca-all"][1] == ("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")
    assert DATASET_MAPPING["medical-mini-zh"].sample == 100_000
    assert DATASET_MAPPING["firefly-all-zh"].files == ("firefly-train-1.1M.jsonl",)


def test_each_entry_has_a_source_and_an_id():
    for key in ORIGINS:
        info = DATASET_MAPPING[key]
        assert info.source.startswith(("https://modelscope.cn/datasets/", "https://huggingface.co/datasets/"))
        assert info.source.endswith((str(info.dataset_id), str(info.hf_dataset_id)))
        assert info.languages
        assert info.tags
        assert all(len(language) == 2 for language in info.languages)
    assert all(DATASET_MAPPING[key].dataset_id and DATASET_MAPPING[key].rows for key in list(ORIGINS)[:35])
    unverified = {key for key in DATASET_MAPPING if not DATASET_MAPPING[key].verified}
    preferences = {key for key in DATASET_MAPPING if "preference" in DATASET_MAPPING[key].tags} - set(EMBEDDED)
    assert unverified == {"glaive-toolcall-en", "glaive-toolcall-zh", "tulu-3-sft", *preferences}


def test_rows_of_the_embedded():
    for key in EMBEDDED:
        kind = {"tiny-pairs": "pairs", "tiny-labels": "labels"}.get(key, "conversations")
        loaded = load_source(key, kind=kind)
        assert DATASET_MAPPING[key].rows == len(loaded.train) + len(loaded.validation or ())


def test_the_catalogue_is_pure():
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from llmtune.data.info import DATASET_MAPPING\n"
        "from llmtune.registry import resolve_reference\n"
        "for info in DATASET_MAPPING.values():\n"
        "    info.preprocess and resolve_reference(info.preprocess, what='x')\n"
        "heavy = {'torch', 'datasets', 'transformers', 'pyarrow', 'modelscope', 'huggingface_hub', 'numpy', 'yaml'}\n"
        "print(len(DATASET_MAPPING), sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "57 []", done.stderr


# llmtune list


def listed(capsys, *argv: str) -> list[list[str]]:
    assert main(["list", *argv]) == 0
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]


def test_list_datasets_shows_ids_languages_and_rows(capsys):
    lines = listed(capsys, "datasets")
    assert lines[0] == ["key", "id or path", "languages", "tags", "rows"]
    assert ["alpaca-zh", "AI-ModelScope/alpaca-gpt4-data-zh", "zh", "chat general", "48,818"] in lines
    assert ["glaive-toolcall-en", "llamafactory/glaive_toolcall_en", "en"] in [line[:3] for line in lines]
    assert ["self-intro", "-", "en zh", "chat identity", "162"] in lines
    assert next(line for line in lines if line[0] == "self-cognition")[4] == "-"


def test_list_unverified_shows_unverified_entries_alone(capsys):
    shown = {line[0] for line in listed(capsys, "datasets", "--unverified")[1:]}
    assert shown == {key for key, info in DATASET_MAPPING.items() if not info.verified}
    assert {"glaive-toolcall-en", "hh-rlhf"} < shown
    keys = {line[0] for line in listed(capsys, "models")}
    assert {line[0] for line in listed(capsys, "--unverified", "models")} <= keys  # the option is every registry's
