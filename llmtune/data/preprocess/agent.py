"""Conversations with plugins, in MSAgent-Bench's own format: the calls are text inside the assistant's turns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmtune.data.preprocess.common import Drop, Row
from llmtune.data.values import parse_literal
from llmtune.errors import RowError

PLUGIN = re.compile(r"\d\. {\"(?:plugin_)?name\": \"(.+?)\"")
PLUGIN_MINI = re.compile(r"\d\. {\"plugin_name\": \"(.+?)\"")


def msagent(row: Row) -> Row | Drop:
    return _with_several_plugins(row, PLUGIN)


def msagent_mini(row: Row) -> Row | Drop:
    """The rows whose plugins are listed in the newer spelling."""
    return _with_several_plugins(row, PLUGIN_MINI)


def _with_several_plugins(row: Row, pattern: re.Pattern[str]) -> Row | Drop:
    """Keep the rows that offer more than one plugin before the user speaks; the order of roles is checked later."""
    turns = _turns(row.get("conversations"))
    if not any(turn.get("from") == "user" for turn in turns):
        return Drop("no user message")
    before = itertools.takewhile(lambda turn: turn.get("from") != "user", turns)
    plugins = {name for turn in before for name in pattern.findall(str(turn.get("value")))}
    if len(plugins) <= 1:
        return Drop("fewer than two plugins")
    return {"conversations": turns}


def _turns(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        value = parse_literal(value, what="column 'conversations'")
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowError("column 'conversations' is not a list of {from, value}")
    return list(value)
