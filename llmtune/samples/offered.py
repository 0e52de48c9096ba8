"""Tools that rows offer to the model: their own, or all functions of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmtune.data.values import json_text
from llmtune.errors import UsageError
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.tools import tool_format_of
from llmtune.templates.tools.info import function_of
from llmtune.tool_functions.functions import ToolFunction

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "tools"


def check_tool_format(template: ChatTemplate) -> None:
    """Refuse a template that has no format for calls."""
    if tool_format_of(template) is None:
        raise UsageError(
            f"--tool_functions: the template {template.name!r} has no tool format. Set one with --tool_format "
            "(llmtune list tool_formats)."
        )


def offer_tools(dataset: Dataset, functions: Mapping[str, ToolFunction], name: str = "training") -> Dataset:
    """Return a canonical dataset in which rows without tools offer all functions.

    Args:
        name: The use of the rows, for messages.

    Raises:
        UsageError: A row offers a tool without a function, or a function has no schema.
    """
    import pyarrow.compute as pc
    from datasets import Dataset

    given = dataset.unique(COLUMN)
    for text in filter(None, given):
        missing = [tool for tool in tool_names(text) if tool not in functions]
        if missing:
            row = list(dataset[COLUMN]).index(text)
            raise UsageError(
                f"--tool_functions: row {row} of the {name} rows offers {missing[0]!r}, which has no function. "
                f"Functions: {', '.join(functions)}. Add one, or remove the tool from the row."
            )
    if all(given):
        return dataset
    schemas = json_text([one.schema() for one in functions.values()], "a schema of --tool_functions")
    # Named by what it is made of: the cache of tokens knows the schemas by it (see `_key` in store.py).
    digest = hashlib.blake2b(f"{dataset._fingerprint} {schemas}".encode(), digest_size=8).hexdigest()
    table = dataset.with_format("arrow")[:]
    place = table.schema.get_field_index(COLUMN)
    filled = table.set_column(place, table.schema.field(place), pc.fill_null(table.column(place), schemas))
    return Dataset(filled, info=dataset.info, split=dataset.split, fingerprint=digest)


def tool_names(text: str) -> list[str]:
    """Return the names of the tools of a row."""
    return [str(function_of(tool).get("name", "")) for tool in json.loads(text)]
