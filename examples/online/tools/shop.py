"""A shop whose prices only the tool `price` knows: the tool, a short format of calls, and rows.

python shop.py FOLDER writes sft.jsonl, train.jsonl and test.jsonl; no item is for sale in the same city in two of them.
"""

import json
import random
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtune import register_tool, register_tool_format
from llmtune.templates.pieces import Piece
from llmtune.templates.tools import At, ParsedAnswer
from llmtune.types import ToolCall

ITEMS = ("lamp", "book", "chair", "table", "phone", "watch", "shirt", "bread", "apple", "knife")
CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Vienna", "Dublin")
CALLS_IN_SFT = 0.4
"""Share of the rows for sft that call the tool. In the others the response is a guess: a habit that is to be lost."""


@register_tool("price")
def price(goods: str) -> str:
    """Look up what something costs.

    Args:
        goods: An item and a city, such as `lamp, Paris`
    """
    item, _, city = goods.partition(", ")
    if item not in ITEMS or city not in CITIES:
        raise ValueError(f"nobody sells {goods!r}")
    return str(1 + zlib.crc32(goods.encode()) % 9)


# A tool format of a few tokens: Hermes takes 300 for one tool, most of the time of so small a model. Functions of one
# argument are all that it can write.


def write_tools(system: str | None, tools: Sequence[Any]) -> str:
    return "Tools: " + ", ".join(tool["function"]["name"] for tool in tools)


def write_calls(content: str, calls: Sequence[ToolCall], at: At) -> list[Piece]:
    arguments = [" ".join(map(str, call.arguments.values())) for call in calls]
    text = "\n".join(f"call {call.name} {words}" for call, words in zip(calls, arguments, strict=True))
    return [Piece(text, from_data=True)]


def parse(text: str) -> ParsedAnswer:
    found = re.findall(r"^call (\w+) (.*)$", text, re.MULTILINE)
    return (
        ParsedAnswer("", tuple(ToolCall(name, {"goods": words}) for name, words in found))
        if found
        else ParsedAnswer(text)
    )


register_tool_format(
    "short",
    write_tools=write_tools,
    write_calls=write_calls,
    write_results_as_question=lambda results: "\n".join(results),
    parse=parse,
    opens=("call ",),
)


# Rows


def pairs(part: int) -> list[str]:
    """Return a third of all that is for sale."""
    found = [f"{item}, {city}" for item in ITEMS for city in CITIES]
    random.Random(0).shuffle(found)
    return found[part::3]


def question(goods: str) -> dict[str, str]:
    item, _, city = goods.partition(", ")
    return {"role": "user", "content": f"What does a {item} cost in {city}?"}


def taught(goods: str, chance: random.Random) -> dict[str, Any]:
    """Return a row for sft. The number is any: the model is to read it, not to know it."""
    cost = str(chance.randint(1, 9))
    turns = [{"role": "assistant", "content": f"Maybe {cost}"}]
    if chance.random() < CALLS_IN_SFT:
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": "price", "arguments": {"goods": goods}}]}
        turns = [call, {"role": "tool", "content": cost}, {"role": "assistant", "content": cost}]
    tools = [{"type": "function", "function": {"name": "price", "parameters": {}}}]
    return {"tools": tools, "messages": [question(goods), *turns]}


def main(folder: Path) -> None:
    chance = random.Random(1)
    rows = {
        "sft": [taught(goods, chance) for goods in pairs(0) * 80],
        "train": [{"messages": [question(goods)], "solution": price(goods)} for goods in pairs(1)],
        "test": [{"messages": [question(goods)], "solution": price(goods)} for goods in pairs(2)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
