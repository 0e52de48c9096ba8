"""Rows that teach a model to use the two tools of tool_loop.py: a question, the call, its result, the answer.

python examples/serve/tool_data.py [--rows 6000] > tools.jsonl
"""

import argparse
import json
import random
import sys

from tool_loop import TOOLS, WEATHER, run

CITIES = [city.capitalize() for city in WEATHER]
SUMS = ("What is {}?", "Work out {}.", "How much is {}?", "{} = ?")
PLACES = ("What is the weather in {}?", "How is the weather in {} today?", "Weather in {}, please.", "And in {}?")


def row(chance: random.Random) -> dict:
    """One conversation. What the tool gives is what it will give when the model is served."""
    if chance.random() < 0.7:
        expression = f"{chance.randint(1, 99)} {chance.choice('+-*')} {chance.randint(1, 99)}"
        name, arguments = "calculate", {"expression": expression}
        question = chance.choice(SUMS).format(expression)
    else:
        city = chance.choice(CITIES)
        name, arguments = "get_weather", {"city": city}
        question = chance.choice(PLACES).format(city)
    result = run(name, json.dumps(arguments))
    answer = f"{expression} is {result}." if name == "calculate" else f"In {city}: {result}."
    return {
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": answer},
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    for _ in range(options.rows):
        sys.stdout.write(json.dumps(row(chance), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
