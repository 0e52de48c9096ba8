"""`llmtune list WHAT [--unverified] [--json]`: the keys of a registry, or the plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmtune.cli.words import print_json, refuse_flags, take_switch
from llmtune.data.info import DATASET_MAPPING, DatasetInfo
from llmtune.errors import UsageError
from llmtune.losses.info import ADVANTAGE_MAPPING, LOSS_MAPPING, LossInfo
from llmtune.metrics import METRIC_MAPPING
from llmtune.models.info import MODEL_MAPPING
from llmtune.registry import Registry
from llmtune.rewards.info import REWARD_MAPPING, RewardInfo
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.templates.tools import TOOL_FORMAT_MAPPING
from llmtune.tool_functions.info import TOOL_MAPPING, ToolInfo

REGISTRIES: Mapping[str, Registry[Any]] = {
    "models": MODEL_MAPPING,
    "datasets": DATASET_MAPPING,
    "templates": TEMPLATE_MAPPING,
    "tool_formats": TOOL_FORMAT_MAPPING,
    "metrics": METRIC_MAPPING,
    "losses": LOSS_MAPPING,
    "advantages": ADVANTAGE_MAPPING,
    "rewards": REWARD_MAPPING,
    "tools": TOOL_MAPPING,
}


USAGE = f"usage: llmtune list {'|'.join(REGISTRIES)}|plugins [--unverified] [--json true]\n"
EXAMPLES = (
    *(f"llmtune list {what}" for what in [*REGISTRIES, "plugins"]),
    "llmtune list models --unverified",
    "llmtune list datasets --json true",
)
UNVERIFIED = "--unverified"
"""Only the entries whose facts no public source confirms: check them before relying on them."""


def run(argv: Sequence[str]) -> int:
    only_unverified, argv = take_switch(argv, UNVERIFIED)
    as_json, argv = take_switch(argv, "--json")
    if not {"-h", "--help"}.intersection(argv):
        refuse_flags(argv, USAGE)
    if len(argv) != 1 or argv[0] not in (*REGISTRIES, "plugins"):
        if argv and argv[0] in ("-h", "--help"):
            sys.stdout.write(USAGE)
            return 0
        raise UsageError(f"Say what to list: {', '.join(REGISTRIES)} or plugins.")
    rows = _plugins() if argv[0] == "plugins" else _entries(argv[0], only_unverified)
    if as_json:
        head = [name.replace(" ", "_").lower() for name in rows[0]]
        print_json([dict(zip(head, row, strict=True)) for row in rows[1:]])
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if len(rows) == 1:
        sys.stdout.write(f"no {argv[0]}\n")
        return 0
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return 0


def _entries(what: str, only_unverified: bool) -> list[tuple[str, ...]]:
    registry = REGISTRIES[what]
    head, columns = COLUMNS[what]
    rows: list[tuple[str, ...]] = [head]
    for key in registry:
        if key in registry.plugins and registry.origin(key).startswith("plugin "):  # not loaded
            rows.append((key, *["(plugin)"] * (len(head) - 1)))
        elif not only_unverified or not getattr(registry[key], "verified", True):
            rows.append((key, *columns(registry[key])))
    return rows


def _plugins() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("registry", "key", "from")]
    for what, registry in REGISTRIES.items():
        rows += [(what, key, registry.origin(key)) for key in registry.plugins]
    return rows


def _dataset_columns(info: DatasetInfo) -> tuple[str, ...]:
    repository = info.dataset_id or info.hf_dataset_id or info.path or "-"
    rows = "-" if info.rows is None else f"{info.rows:,}"
    return repository, " ".join(info.languages) or "-", " ".join(info.tags) or "-", rows


def _reward_columns(info: RewardInfo) -> tuple[str, ...]:
    columns = " ".join(name.replace("|", " or ") for name in info.columns)
    return columns or "-", info.description, " ".join(info.defaults) or "-"


def _reference_text(info: LossInfo) -> str:
    return "with --beta" if info.over == "tokens" else "yes" if info.needs_reference else "no"


def _tool_columns(info: ToolInfo) -> tuple[str, ...]:
    return "of its docstring" if info.schema is None else "given", info.description or "-"


COLUMNS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {
    "models": (
        ("key", "id or path", "template", "LoRA targets"),
        lambda info: (info.model_id_or_path, info.template, " ".join(info.lora_target_modules)),
    ),
    "datasets": (("key", "id or path", "languages", "tags", "rows"), _dataset_columns),
    "templates": (
        ("key", "multi-turn", "default system prompt"),
        lambda info: ("no" if info.chat_sep is None else "yes", (info.default_system or "")[:60].replace("\n", " ")),
    ),
    "tool_formats": (
        ("key", "tools in", "call starts with"),
        lambda info: (info.tools_in, " or ".join(filter(None, info.opens)) or "text"),
    ),
    "metrics": (
        ("key", "of", "scores", "description"),
        lambda info: (info.kind, " ".join(info.names) or "-", info.description),
    ),
    "advantages": (
        ("key", "of a group", "critic", "description"),
        lambda info: ("yes" if info.relative else "no", "yes" if info.needs_values else "no", info.description),
    ),
    "losses": (
        ("key", "over", "reference", "description"),
        lambda info: (info.over, _reference_text(info), info.description),
    ),
    "rewards": (("key", "columns", "description", "options"), _reward_columns),
    "tools": (("key", "schema", "description"), _tool_columns),
}
