"""Ask the server with the openai package, streamed, turn after turn.

python examples/serve/openai_client.py "Who are you?" "And who made you?" [--url ...] [--model NAME]
"""

import argparse
import os

from openai import OpenAI, OpenAIError

parser = argparse.ArgumentParser()
parser.add_argument("questions", nargs="+")
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--model", help="Default: the first that the server names.")
options = parser.parse_args()

client = OpenAI(base_url=f"{options.url}/v1", api_key=os.environ.get("LLMTUNE_API_KEY", "none"))
try:
    model = options.model or client.models.list().data[0].id
    messages = []
    for question in options.questions:
        print(f"user:      {question}\nassistant: ", end="")
        messages.append({"role": "user", "content": question})
        answer = ""
        for chunk in client.chat.completions.create(
            model=model, messages=messages, max_tokens=128, temperature=0, stream=True
        ):
            piece = chunk.choices[0].delta.content or ""
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})
except OpenAIError as err:
    raise SystemExit(f"{type(err).__name__}: {err}") from err
