"""Pages of the registries: tables of models, datasets, templates, tool formats, metrics, rewards and tools."""

from __future__ import annotations

from collections.abc import Iterator

import registry_tables
from gen_commands import cell, table

from llmtune.metrics import METRIC_MAPPING
from llmtune.rewards.info import REWARD_MAPPING
from llmtune.templates.tools import TOOL_FORMAT_MAPPING
from llmtune.tool_functions.info import TOOL_MAPPING

Row = tuple[str, ...]

PAGES = {
    "models": (
        "Models",
        "`--model_type KEY` takes one of these. The weights come from ModelScope, from Hugging Face with `--use_hf "
        "true`, or from `--model_id_or_path FOLDER`. Entries whose ids are `not verified` were not compared with a "
        "second source. A folder without an entry trains as well: [your own model](../howto/own-model.md).",
        "llmtune list models\nllmtune list models --unverified\nllmtune show model qwen2.5-7b-instruct",
    ),
    "datasets": (
        "Datasets",
        "`--dataset KEY` takes one or several; `KEY#1000` draws 1,000 rows. Files of yours need no entry: [your own "
        "dataset](../howto/own-dataset.md).",
        "llmtune list datasets\nllmtune show dataset tiny-qa",
    ),
    "templates": (
        "Templates",
        "A model's entry names its template; `--template_type KEY` takes another. [Templates and masks]"
        "(../templates.md) shows what they do.",
        "llmtune list templates\nllmtune show template chatml",
    ),
    "tool_formats": (
        "Tool formats",
        "Formats of tools, calls and results by model family. A template names its format: [agents and "
        "function calling](../howto/agents.md).",
        "llmtune list tool_formats\nllmtune show tool_format hermes",
    ),
    "metrics": (
        "Metrics",
        "`llmtune eval --metrics KEY ...` takes them: [evaluate](../howto/evaluate.md).",
        "llmtune list metrics",
    ),
    "rewards": (
        "Rewards",
        "Functions that score completions. Options go in brackets, a weight behind a star: "
        "`'repetition(n=4)*0.5'`. Several columns: the first that a row has.",
        "llmtune list rewards\nllmtune show reward accuracy",
    ),
    "tools": (
        "Tools",
        "Python functions that a model may call during online training: `--tool_functions KEY my_tools.py:fn`. Your "
        "own: `register_tool`.",
        "llmtune list tools\nllmtune show tool calculate",
    ),
}


def tool_formats() -> Iterator[Row]:
    for key in TOOL_FORMAT_MAPPING:
        info = TOOL_FORMAT_MAPPING[key]
        if "/families/" in TOOL_FORMAT_MAPPING.origin(key):
            opens = " or ".join(f"`{text.strip()}`" for text in info.opens if text.strip()) or "text"
            yield f"`{key}`", info.tools_in, opens, ", ".join(_templates_of(key))


def metrics() -> Iterator[Row]:
    for key in METRIC_MAPPING:
        info = METRIC_MAPPING[key]
        if "llmtune/metrics.py" in METRIC_MAPPING.origin(key):
            yield f"`{key}`", info.kind, " ".join(info.names), cell(info.description)


def rewards() -> Iterator[Row]:
    for key in REWARD_MAPPING:
        info = REWARD_MAPPING[key]
        if "llmtune/rewards/builtin.py" in REWARD_MAPPING.origin(key):
            columns = " ".join(f"`{name}`" for names in info.columns for name in names.split("|"))
            options = " ".join(_option(name, value) for name, value in info.defaults.items())
            yield f"`{key}`", columns, options, cell(info.description), f"[paper]({info.source})"


def tools() -> Iterator[Row]:
    for key in TOOL_MAPPING:
        if "llmtune/tool_functions/builtin.py" in TOOL_MAPPING.origin(key):
            yield f"`{key}`", cell(TOOL_MAPPING[key].description)


def _option(name: str, value: object) -> str:
    return f"`{name}`" if value is None else f"`{name}={value}`"


def pages() -> Iterator[tuple[str, str]]:
    heads = dict(registry_tables.HEADS)
    heads["tool_formats"] = ("Key", "Tools are in", "A call begins with", "Templates")
    heads["metrics"] = ("Key", "Measures", "Scores", "Description")
    heads["tools"] = ("Key", "Description")
    heads["rewards"] = ("Key", "Columns", "Options", "Description", "Source")
    rows = {
        **registry_tables.TABLES,
        "tool_formats": tool_formats,
        "metrics": metrics,
        "rewards": rewards,
        "tools": tools,
    }
    for name, (title, text, commands) in PAGES.items():
        found = table(heads[name], rows[name]())
        yield f"registries/{name}.md", f"# {title}\n\n{text}\n\n```bash\n{commands}\n```\n\n{found}\n"
    counts = ((f"[{title}]({name}.md)", f"{len(list(rows[name]())):,}") for name, (title, _, _) in PAGES.items())
    yield (
        "registries/index.md",
        "# Registries\n\nThe tables of `llmtune list`. Each entry is one call: `register_model`, "
        "`register_dataset`, `register_template`, `register_tool_format`, `register_metric`, `register_reward`, "
        "`register_tool`.\n\n"
        f"{table(('Table', 'Lines'), counts)}\n",
    )


def _templates_of(tool_format: str) -> list[str]:
    from llmtune.templates.info import TEMPLATE_MAPPING

    return [
        f"`{key}`"
        for key in TEMPLATE_MAPPING
        if "/families/" in TEMPLATE_MAPPING.origin(key) and TEMPLATE_MAPPING[key].tool_format == tool_format
    ]
