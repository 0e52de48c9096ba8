"""Write the READMEs' tables of models, data sets and templates from the registries: `make golden`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llmtune.data.info import DATASET_MAPPING
from llmtune.models.info import AUTO, MODEL_MAPPING
from llmtune.registry import Registry
from llmtune.templates.info import TEMPLATE_MAPPING

ROOT = Path(__file__).resolve().parents[2]
HEADS = {
    "README.md": {
        "models": ("Keys", "Class of the checkpoint", "Template", "LoRA adapts", ""),
        "datasets": ("Key", "Repository", "Languages", "Tags", "Rows"),
        "templates": ("Key", "Several turns", "Tools", "Default system text"),
    },
    "README_CN.md": {
        "models": ("键", "检查点的类", "模板", "LoRA 作用的层", ""),
        "datasets": ("键", "仓库", "语言", "标签", "行数"),
        "templates": ("键", "多轮", "工具", "默认系统提示"),
    },
}
Row = tuple[str, ...]


def models() -> Iterator[Row]:
    """One row for the keys that differ in size alone."""
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
    """Without what a test or a plug-in has registered beside it."""
    return ((key, registry[key]) for key in registry if "/families/" in registry.origin(key))


TABLES = {"models": models, "datasets": datasets, "templates": templates}


def table(head: Sequence[str], rows: Iterator[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def written(page: str) -> str:
    """The page with its tables made anew, between `<!-- models -->` and `<!-- end -->`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in TABLES.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        found = f"{start}\n\n{table(HEADS[page][name], make())}\n\n{end}"
        text, count = re.subn(f"{start}.*?{end}", lambda _, new=found: new, text, flags=re.S)
        assert count == 1, f"{page} has no place for the table of {name}"
    return text


def main() -> None:
    for page in HEADS:
        (ROOT / page).write_text(written(page), encoding="utf-8")


if __name__ == "__main__":
    main()
