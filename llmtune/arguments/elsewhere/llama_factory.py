"""LLaMA-Factory's YAML (0.9.5): its stage, its defaults, and the names in its dataset_info.json."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere.llama_factory_rules import OF_PREDICTION, RULES
from llmtune.arguments.elsewhere.translation import Translation, as_list, is_off, text_of
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.items import expand

NAME = "LLaMA-Factory"
MARKS = ("finetuning_type", "cutoff_len", "dataset_dir", "do_train", "pref_loss", "lora_target")
"""Keys that only its files have, beside `model_name_or_path`."""
STAGES = ("sft", "pt", "rm", "dpo", "kto", "ppo")
INFER = "infer"
"""The command of a file that only predicts."""
MODELSCOPE = "USE_MODELSCOPE_HUB"


def is_its_file(content: Mapping[str, Any]) -> bool:
    return "model_name_or_path" in content and any(key in content for key in (*MARKS, "template"))


def read(content: Mapping[str, Any], known: Collection[str]) -> Translation:
    found = Translation(NAME, content)
    stage = text_of(content.get("stage") or "sft")
    if stage in STAGES:
        found.stage = stage
    else:
        found.refuse("stage", f"llmtune has no such stage: {', '.join(STAGES)}.")
    predicts = not is_off(content.get("do_predict")) and is_off(content.get("do_train"))
    if predicts:
        found.stage = INFER
    rules = {**RULES, **OF_PREDICTION} if predicts else RULES
    found.apply(rules, known, skip=("stage", "dataset", "eval_dataset", "dataset_dir", "max_samples"))
    _datasets(found)
    if predicts:
        for flag, value in SAMPLING.items():
            found.default(flag, value)
    elif "stage" in content or "do_train" in content:
        _defaults(found)
    return found


def _defaults(found: Translation) -> None:
    """Its defaults, and those of transformers that it keeps, where ours are others."""
    for flag, value in DEFAULTS.items():
        found.default(flag, value)
    content = found.content
    if text_of(content.get("finetuning_type") or "lora") == "lora":
        found.default("lora_target_modules", "ALL")
        rank = text_of(content.get("lora_rank") or 8)
        if rank.isdigit():  # else the parser says what is wrong with it
            found.default("lora_alpha", 2 * int(rank))
    if not found.has("eval_strategy"):
        found.default("eval_strategy", "no")
    if not any("warmup_steps" in value for line in found.lines if line.flag == "train_args" for value in line.values):
        found.default("warmup_ratio", 0)
    if is_off(os.environ.get(MODELSCOPE)):
        found.default("use_hf", True)
    if found.stage == "sft":
        found.default("loss_on", "all")
    if found.stage in ("sft", "pt"):
        found.default("truncation_strategy", "right")
    if found.stage == "pt" and not ("packing" in content and is_off(content["packing"])):
        found.default("join_documents", True)


DEFAULTS = {
    "num_train_epochs": 3.0,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "dataset_test_ratio": 0.0,
    "train_dataset_sample": -1,
    "save_steps": 500,
    "save_total_limit": -1,
}
SAMPLING = {"do_sample": True, "temperature": 0.95, "top_p": 0.7, "top_k": 50, "max_new_tokens": 1024}


# Data: names of dataset_info.json


SHAPE_COLUMNS = {
    "prompt": ("prompt", "instruction", "query", "question"),
    "query": ("input",),
    "response": ("response", "output", "answer", "completion"),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system",),
    "tools": ("tools",),
    "images": ("images", "image"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "kto_tag": ("label", "kto_tag"),
}
"""Its name of a column -> those that we recognise by themselves."""


def _datasets(found: Translation) -> None:
    folder = text_of(found.content.get("dataset_dir") or "data")
    info = _dataset_info(Path(folder).expanduser() / "dataset_info.json")
    limit = found.content.get("max_samples")
    if limit is not None and not text_of(limit).isdigit():
        found.refuse("max_samples", "expected a number of rows.", "train_dataset_sample")
        limit = None
    for key, flag in (("dataset", "dataset"), ("eval_dataset", "val_dataset")):
        if found.content.get(key) is None:
            continue
        names = [name.strip() for value in as_list(found.content[key]) for name in text_of(value).split(",")]
        names = [name for name in names if name]
        unknown = [name for name in names if not _is_known(name, info, folder)]
        if unknown:
            where = "does not name" if info is not None else "is not here, and names"
            text = (
                f"{folder}/dataset_info.json {where} {', '.join(unknown)}. Give --{flag} with paths or keys (llmtune "
            )
            found.refuse(key, f"{text}list datasets), or start where {folder}/ is.", flag)
            continue
        items = [_item(found, key, name, folder, flag, info or {}) for name in names]
        cut = f"#{text_of(limit)}" if limit is not None and flag == "dataset" else ""
        items = [item if not item or "#" in item else item + cut for item in items]
        if all(items):
            found.set(flag, *items, theirs=key)
    if limit is not None and found.stage == INFER:
        found.set("show_dataset_sample", limit, theirs="max_samples")
    elif limit is not None:
        found.set("train_dataset_sample", _all_rows(found, limit), theirs="max_samples", note="drawn, not the first")


def _all_rows(found: Translation, limit: Any) -> int:
    """Rows of all datasets together, for datasets that the command line gives instead."""
    count = len([name for value in as_list(found.content.get("dataset") or "one") for name in str(value).split(",")])
    return int(text_of(limit)) * count


def _is_known(name: str, info: Mapping[str, Any] | None, folder: str) -> bool:
    return folder.upper() == "ONLINE" or name in (info or {}) or name in DATASET_MAPPING or expand(name).exists()


def _item(found: Translation, key: str, name: str, folder: str, flag: str, info: Mapping[str, Any]) -> str:
    """Our item for a name, or "" where its rows cannot be read as they are; the reason is then noted."""
    if folder.upper() == "ONLINE":
        return f"hf::{name}"
    if name not in info:
        return name
    entry = info[name]
    for problem in _unknown_columns(entry):
        found.refuse(key, f"{name}: {problem}. Rename the column, or register the dataset (docs: own dataset).", flag)
        return ""
    source = _source(entry, folder)
    if not source:
        found.refuse(key, f"{name}: its script or cloud file is not read. Give --{flag} with a path.", flag)
    count = entry.get("num_samples")
    return f"{source}#{count}" if source and count else source


def _source(entry: Mapping[str, Any], folder: str) -> str:
    subset = f":{entry['subset']}" if entry.get("subset") else ""
    if entry.get("hf_hub_url") and (is_off(os.environ.get(MODELSCOPE)) or not entry.get("ms_hub_url")):
        return f"hf::{entry['hf_hub_url']}{subset}"
    if entry.get("ms_hub_url"):
        return f"ms::{entry['ms_hub_url']}{subset}"
    return str(Path(folder) / str(entry["file_name"])) if entry.get("file_name") else ""


def _unknown_columns(entry: Mapping[str, Any]) -> list[str]:
    """Columns whose meaning only its dataset_info.json says."""
    if str(entry.get("split", "train")) != "train":
        return [f"split {entry['split']} is not read"]
    columns = entry.get("columns") or {}
    return [
        f"column {theirs!r} is its {meaning}, which is not recognised from the name"
        for meaning, theirs in columns.items()
        if theirs not in SHAPE_COLUMNS.get(meaning, ()) and not (meaning == "prompt" and theirs == "text")
    ]


def _dataset_info(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
