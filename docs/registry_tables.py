"""Tables of models, datasets and templates, from their registries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtune.data.info import DATASET_MAPPING
from llmtune.models.info import AUTO, MODEL_MAPPING
from llmtune.registry import Registry
from llmtune.templates.info import TEMPLATE_MAPPING

HEADS = {
    "models": ("Keys", "Class of the checkpoint", "Template", "LoRA adapts", ""),
    "datasets": ("Key", "Repository", "Languages", "Tags", "Rows"),
    "templates": ("Key", "Several turns", "Tools", "Default system prompt"),
}
Row = tuple[str, ...]


def models() -> Iterator[Row]:
    """Yield one row for the keys that differ only in size."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, info in _shipped(MODEL_MAPPING):
        if key != AUTO:
            images = {"native": "images", "remote_code": "images with --trust_remote_code true"}.get(info.images, "")
            notes = [images, info.torch_dtype or "", "" if info.verified else "ids not verified"]
            targets = " ".join(info.lora_target_modules)
            facts = (info.architecture, info.template, targets, ", ".join(filter(None, notes)))
            groups.setdefault(facts, []).append(f"`{key}`")
    for (architecture, template, targets, notes), keys in groups.items():
        yield ", ".join(keys), architecture, template, targets, notes


def datasets() -> Iterator[Row]:
    for key, info in _shipped(DATASET_MAPPING):
        repository = info.dataset_id or info.hf_dataset_id or "llmtune"
        rows = "" if info.rows is None else f"{info.rows:,}"
        yield f"`{key}`", repository, " ".join(info.languages), ", ".join(info.tags), rows


def templates() -> Iterator[Row]:
    for key, info in _shipped(TEMPLATE_MAPPING):
        if info.from_tokenizer:
            yield f"`{key}`", "as the tokenizer's own", "as the tokenizer's own", "as the tokenizer's own"
            continue
        system = (info.default_system or "").split("\n")[0].replace("|", "\\|")
        yield f"`{key}`", "yes" if info.chat_sep is not None else "", info.tool_format or "", system[:80]


def _shipped(registry: Registry[Any]) -> Iterator[tuple[str, Any]]:
    """Return the entries that ship with llmtune, without those of tests and plugins."""
    return ((key, registry[key]) for key in registry if "/families/" in registry.origin(key))


TABLES = {"models": models, "datasets": datasets, "templates": templates}
