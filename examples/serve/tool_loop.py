"""Function calling in a loop: the model asks for functions, this script runs them, until it answers in words.

python examples/serve/tool_loop.py "What is 17 * 23, and what is the weather in Paris?" [--tool_choice required]
"""

import argparse
import ast
import json
import operator
import os

from openai import OpenAI, OpenAIError

MAX_ROUNDS = 5
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Work out an expression of numbers with + - * / and brackets.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "For example 2 * (3 + 4)"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city today.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
WEATHER = {"paris": "cloudy, 14 degrees", "beijing": "sunny, 22 degrees", "london": "rain, 11 degrees"}


def calculate(expression: str) -> str:
    """The model wrote this text, so only numbers and four signs are understood: no eval()."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise ValueError(f"{expression!r} is more than numbers and + - * /")

    return str(value(ast.parse(expression, mode="eval").body))


def get_weather(city: str) -> str:
    return WEATHER.get(city.lower(), f"nobody has told me of {city}")


FUNCTIONS = {"calculate": calculate, "get_weather": get_weather}


def run(name: str, arguments: str) -> str:
    """Return the result of a call. An invalid call is reported to the model, which may try again."""
    try:
        return FUNCTIONS[name](**json.loads(arguments))
    except (KeyError, TypeError, ValueError, SyntaxError, ArithmeticError, RecursionError) as err:
        return f"error: {type(err).__name__}: {err}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="Default: the first that the server names.")
    parser.add_argument("--tool_choice", choices=["auto", "required"], default="auto", help="Of the first round.")
    options = parser.parse_args()
    client = OpenAI(base_url=f"{options.url}/v1", api_key=os.environ.get("LLMTUNE_API_KEY", "none"))
    model = options.model or client.models.list().data[0].id
    messages = [{"role": "user", "content": options.question}]
    print(f"user:      {options.question}")
    for number in range(MAX_ROUNDS):
        found = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, max_tokens=256, temperature=0,
            tool_choice=options.tool_choice if number == 0 else "auto",
        )  # fmt: skip
        message = found.choices[0].message
        if not message.tool_calls:
            print(f"assistant: {message.content}")
            return
        messages.append(
            {
                "role": "assistant",
                "content": message.content,
                "tool_calls": [c.model_dump() for c in message.tool_calls],
            }
        )
        for call in message.tool_calls:
            result = run(call.function.name, call.function.arguments)
            print(f"call:      {call.function.name}({call.function.arguments})\nresult:    {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(f"No answer after {MAX_ROUNDS} rounds of calls.")


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as err:
        raise SystemExit(f"{type(err).__name__}: {err}") from err
