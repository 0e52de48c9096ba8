"""`llmtune list models|datasets|templates|tool_formats|metrics|plugins [--unverified]`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmtune.data.info import DATASET_MAPPING, DatasetInfo
from llmtune.errors import UsageError
from llmtune.metrics import METRIC_MAPPING, MetricInfo
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.registry import Registry
from llmtune.templates.info import TEMPLATE_MAPPING, TemplateInfo
from llmtune.templates.tools import TOOL_FORMAT_MAPPING, ToolFormat

REGISTRIES: Mapping[str, Registry[Any]] = {
    "models": MODEL_MAPPING,
    "datasets": DATASET_MAPPING,
    "templates": TEMPLATE_MAPPING,
    "tool_formats": TOOL_FORMAT_MAPPING,
    "metrics": METRIC_MAPPING,
}


USAGE = "usage: llmtune list models|datasets|templates|tool_formats|metrics|plugins [--unverified]\n"
UNVERIFIED = "--unverified"
"""Only the entries whose facts no public source confirms: check them before relying on them."""


def run(argv: Sequence[str]) -> int:
    only_unverified = UNVERIFIED in argv
    argv = [word for word in argv if word != UNVERIFIED]
    if len(argv) != 1 or argv[0] not in (*REGISTRIES, "plugins"):
        if argv and argv[0] in ("-h", "--help"):
            sys.stdout.write(USAGE)
            return 0
        raise UsageError("Say what to list: models, datasets, templates, tool_formats, metrics or plugins.")
    rows = _plugins() if argv[0] == "plugins" else _entries(argv[0], only_unverified)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return 0


def _entries(what: str, only_unverified: bool) -> list[tuple[str, ...]]:
    registry = REGISTRIES[what]
    head, columns = COLUMNS[what]
    rows: list[tuple[str, ...]] = [head]
    for key in registry:
        if key in registry.plugins and not _is_loaded(registry, key):
            rows.append((key, *["(plugin)"] * (len(head) - 1)))
        elif not only_unverified or not getattr(registry[key], "verified", True):
            rows.append((key, *columns(registry[key])))
    return rows


def _is_loaded(registry: Registry[Any], key: str) -> bool:
    return not registry.origin(key).startswith("plugin ")


def _plugins() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("registry", "key", "from")]
    for what, registry in REGISTRIES.items():
        rows += [(what, key, registry.origin(key)) for key in registry.plugins]
    return rows if len(rows) > 1 else [("no plugins", "", "")]


def _model_columns(info: ModelInfo) -> tuple[str, ...]:
    return info.model_id_or_path, info.template, " ".join(info.lora_target_modules)


def _dataset_columns(info: DatasetInfo) -> tuple[str, ...]:
    repository = info.dataset_id or info.hf_dataset_id or info.path or "-"
    rows = "-" if info.rows is None else f"{info.rows:,}"
    return repository, " ".join(info.languages) or "-", " ".join(info.tags) or "-", rows


def _template_columns(info: TemplateInfo) -> tuple[str, ...]:
    return "yes" if info.chat_sep is not None else "no", (info.default_system or "")[:60].replace("\n", " ")


def _tool_format_columns(info: ToolFormat) -> tuple[str, ...]:
    return info.tools_in, " or ".join(filter(None, info.opens)) or "text"


def _metric_columns(info: MetricInfo) -> tuple[str, ...]:
    return info.kind, " ".join(info.names) or "-", info.description


COLUMNS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {
    "models": (("key", "id or path", "template", "LoRA targets"), _model_columns),
    "datasets": (("key", "id or path", "languages", "tags", "rows"), _dataset_columns),
    "templates": (("key", "multi-turn", "default system prompt"), _template_columns),
    "tool_formats": (("key", "tools in", "call starts with"), _tool_format_columns),
    "metrics": (("key", "of", "scores", "description"), _metric_columns),
}
