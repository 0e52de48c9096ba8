"""Axolotl's YAML (0.19): its stage, its defaults, and its datasets, whose types say the template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from llmtune.arguments.elsewhere.axolotl_rules import RULES
from llmtune.arguments.elsewhere.templates import AUTO
from llmtune.arguments.elsewhere.templates import AXOLOTL as TEMPLATES
from llmtune.arguments.elsewhere.translation import Translation, as_list, is_off, text_of
from llmtune.data.info import DATASET_MAPPING
from llmtune.data.items import expand
from llmtune.templates.info import TEMPLATE_MAPPING

NAME = "Axolotl"
MARKS = ("sequence_len", "micro_batch_size", "datasets", "adapter", "num_epochs", "pretraining_dataset")
"""Keys that only its files have, beside `base_model`."""
READ_HERE = (
    *("rl", "reward_model", "datasets", "test_datasets", "pretraining_dataset", "trl", "chat_template"),
    "special_tokens",
)
STAGES = {"dpo": "dpo", "ipo": "dpo", "simpo": "dpo", "orpo": "dpo", "kto": "kto", "grpo": "grpo"}
OF_LLAMA = ("<s>", "</s>", "<unk>")
"""Special tokens of Llama's tokenizers, which need not be set."""
ROWS_OF = re.compile(r"train(?:\[:(\d+)\])?")
PLAIN_DATA_KEYS = {
    "ds_type": (),
    "field_messages": ("messages", "conversations", "conversation"),
    "field_human": (),
    "field_model": (),
    "field_tools": ("tools",),
    "field_chosen": ("chosen",),
    "field_rejected": ("rejected",),
    "field_thinking": ("thinking", "reasoning_content"),
    "template_thinking_key": (),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
    "roles_to_train": ("assistant", "gpt"),
    "train_on_eos": ("turn", "all"),
    "train_on_eot": ("turn", "all"),
    "trust_remote_code": (),
    "chat_template": (),
    "drop_system_message": ("false",),
    "preprocess_shards": (),
    "conversation": (),
    "split_thinking": ("false",),
    "field": ("text",),
    "text_column": ("text",),
}
"""Keys of a dataset that are not needed where its rows have a shape that we recognise, with the values that say so."""
COLUMN_NAMES = {"role", "content", "from", "value"}
ROLE_NAMES = {"system", "user", "human", "assistant", "gpt", "model", "tool"}


def is_its_file(content: Mapping[str, Any]) -> bool:
    return "base_model" in content and any(key in content for key in MARKS)


def read(content: Mapping[str, Any], known: Collection[str]) -> Translation:
    found = Translation(NAME, content)
    _stage(found)
    found.apply(RULES, known, skip=READ_HERE)
    _datasets(found)
    _special_tokens(found)
    _trl(found, known)
    _defaults(found)
    return found


def _stage(found: Translation) -> None:
    content = found.content
    rl = text_of(content.get("rl") or "")
    if not is_off(content.get("reward_model")):
        found.stage = "rm"
    elif rl in STAGES:
        found.stage = STAGES[rl]
        if rl in ("ipo", "simpo", "orpo"):
            found.set("loss", rl, theirs="rl")
    elif not is_off(rl):
        found.refuse("rl", f"llmtune has {', '.join(STAGES)}.")
    elif not is_off(content.get("pretraining_dataset")) or set(_types(content)) == {"completion"}:
        found.stage = "pt"


def _types(content: Mapping[str, Any]) -> list[str]:
    datasets = content.get("datasets")
    rows = datasets if isinstance(datasets, list) else []
    return [text_of(row.get("type") or "") for row in rows if isinstance(row, dict)]


def _defaults(found: Translation) -> None:
    for flag, value in DEFAULTS.items():
        found.default(flag, value)
    if not found.has("sft_type"):
        found.default("sft_type", "full")
    if not any("warmup_steps" in value for line in found.lines if line.flag == "train_args" for value in line.values):
        found.default("warmup_ratio", 0.03)
    if found.stage == "sft":
        found.default("loss_on", "all")
    if found.stage in ("sft", "dpo", "kto", "rm"):
        found.default("truncation_strategy", "delete")


DEFAULTS = {
    "num_train_epochs": 1.0,
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.0,
    "max_length": 512,
    "dataset_test_ratio": 0.0,
    "train_dataset_sample": -1,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_total_limit": -1,
    "use_hf": True,
}


# Data


def _datasets(found: Translation) -> None:
    for key, flag in (("datasets", "dataset"), ("pretraining_dataset", "dataset"), ("test_datasets", "val_dataset")):
        rows = found.content.get(key)
        if is_off(rows):
            continue
        items = []
        for row in rows if isinstance(rows, list) else [rows]:
            entry = row if isinstance(row, dict) else {"path": row}
            items.append(_item(found, key, entry, flag))
            if key == "datasets":
                _template_of(found, text_of(entry.get("type") or ""), entry)
        if all(items):
            found.set(flag, *items, theirs=key)
        if key == "pretraining_dataset":
            found.set("streaming", True, theirs=key)
    named = found.content.get("chat_template")
    if not found.has("template_type") and not is_off(named):
        _use_template(found, "chat_template", text_of(named))


def _item(found: Translation, key: str, entry: Mapping[str, Any], flag: str) -> str:
    path = text_of(entry.get("path") or "")
    for name, value in entry.items():
        problem = _data_problem(name, value)
        if problem:
            found.refuse(key, f"{path}: {problem}", flag)
            return ""
    files = [text_of(one) for one in as_list(entry.get("data_files") or [])]
    here = (
        [path] if expand(path).exists() or path in DATASET_MAPPING else [one for one in files if expand(one).exists()]
    )
    if files and not here:
        found.refuse(key, f"{path}: data_files of a hub repository. Download them, and give --{flag} FILE.", flag)
        return ""
    split = ROWS_OF.fullmatch(text_of(entry.get("split") or "train"))
    if split is None:
        found.refuse(key, f"{path}: split {entry['split']}. Give --{flag} with the rows, as in {path}#1000.", flag)
        return ""
    subset = f":{text_of(entry['name'])}" if entry.get("name") else ""
    source = here[0] if here else f"hf::{path}{subset}"
    return f"{source}#{split[1]}" if split[1] else source


def _data_problem(name: str, value: Any) -> str:
    """Why a key of a dataset cannot be said here; "" if it need not be."""
    unset = value is None or (is_off(value) and not name.startswith("train_on_"))
    if name in ("path", "type", "split", "name", "data_files") or unset:
        return ""
    if name in ("roles", "message_property_mappings"):
        words = value.values() if isinstance(value, dict) else [value]
        names = {text_of(word) for one in words for word in as_list(one)}
        odd = sorted(names - (COLUMN_NAMES if name == "message_property_mappings" else ROLE_NAMES))
        return f"{name} has {', '.join(odd)}, which llmtune does not recognise. Rename them in the data." * bool(odd)
    allowed = PLAIN_DATA_KEYS.get(name)
    if allowed is None:
        return f"key {name} of a dataset. Rename its columns, or register the dataset."
    odd = [text_of(one) for one in as_list(value) if allowed and text_of(one) not in allowed]
    return f"{name} {', '.join(odd)} is not recognised by itself. Rename it in the data." if odd else ""


def _template_of(found: Translation, kind: str, entry: Mapping[str, Any]) -> None:
    """The template that the type of a dataset says: alpaca is a text of its own, chat_template the model's."""
    if found.stage == "pt" or is_off(kind):
        return
    family = kind.partition(".")[0]
    if kind.startswith("{") or family.partition(":")[0] not in (
        "alpaca",
        "chat_template",
        "chatml",
        "llama3",
        "bradley_terry",
    ):
        found.refuse(
            "datasets", f"type {kind[:60]} is a format of its own. Give --template_type and --dataset.", "dataset"
        )
        return
    if family.startswith("alpaca"):
        named = {"alpaca": "alpaca", "alpaca:chatml": "chatml"}.get(family, family)
    elif family in ("chatml", "llama3"):
        named = family
    else:
        named = text_of(entry.get("chat_template") or found.content.get("chat_template") or "tokenizer_default")
    note = "an input follows its instruction, without a heading of its own" if named == "alpaca" else ""
    _use_template(found, "datasets" if "chat_template" not in found.content else "chat_template", named, note)


def _use_template(found: Translation, key: str, name: str, note: str = "") -> None:
    known = AUTO if name.startswith("tokenizer_default") else TEMPLATES.get(name)
    if known is None:
        found.refuse(key, f"llmtune has no template like {name}. Give --template_type KEY, or auto.", "template_type")
        return
    former = next((line.values[0] for line in found.lines if line.flag == "template_type"), known)
    if former != known:
        found.refuse(
            key, f"rows of one run share a template, not {former} and {known}: --template_type.", "template_type"
        )
        return
    note = "the tokenizer's own chat template" if known == AUTO else note
    found.set("template_type", known, theirs=key, note=note)


# The tokenizer's tokens, and trl's names


def _special_tokens(found: Translation) -> None:
    """Tokens that the file gives the tokenizer: harmless where the template writes the same, or none."""
    key = "special_tokens"
    value = found.content.get(key)
    if not isinstance(value, dict):
        return
    named = next((line.values[0] for line in found.lines if line.flag == "template_type"), AUTO)
    template = TEMPLATE_MAPPING[named]
    for name, token in value.items():
        if name == "additional_special_tokens":
            found.set("new_special_tokens", *as_list(token), theirs=key)
        elif token is None or token in OF_LLAMA or name not in ("bos_token", "eos_token"):
            continue  # padding is masked, and text has no unknown tokens
        elif name == "eos_token" and token not in template.suffix:
            found.refuse(key, f"eos_token {token}: here the template ends a turn. Change it in the tokenizer.")
        elif name == "bos_token" and (template.from_tokenizer or ("bos_token_id",) in template.prefix):
            found.refuse(key, f"bos_token {token}: change it in the tokenizer.")
    if not found.has("new_special_tokens") and not any(one.theirs.startswith(key) for one in found.refusals):
        found.without_effect(key, "padding is masked; the others are what the template writes")


def _trl(found: Translation, known: Collection[str]) -> None:
    """The mapping `trl:` of grpo: trl's own names."""
    inner = found.content.get("trl")
    if not isinstance(inner, dict):
        return
    part = Translation(NAME, inner, found.stage)
    part.apply({}, known)
    found.lines += part.lines
    found.harmless += part.harmless
    found.refusals += part.refusals
