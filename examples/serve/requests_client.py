"""Ask the server with `requests` alone: once whole, once as a stream of server-sent events.

python examples/serve/requests_client.py "Who are you?" [--url http://127.0.0.1:8000] [--model NAME]
"""

import argparse
import json
import os

import requests

parser = argparse.ArgumentParser()
parser.add_argument("question")
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--model", help="Default: the first that the server names.")
options = parser.parse_args()

headers = {"Authorization": f"Bearer {os.environ.get('LLMTUNE_API_KEY', 'none')}"}
models = requests.get(f"{options.url}/v1/models", headers=headers, timeout=30).json()["data"]
body = {
    "model": options.model or models[0]["id"],
    "messages": [{"role": "user", "content": options.question}],
    "max_tokens": 128,
    "temperature": 0,
}

answer = requests.post(f"{options.url}/v1/chat/completions", json=body, headers=headers, timeout=600)
if not answer.ok:
    raise SystemExit(answer.json()["error"]["message"])
print("whole:   ", answer.json()["choices"][0]["message"]["content"])
print("tokens:  ", answer.json()["usage"]["total_tokens"])

print("streamed: ", end="")
body["stream"] = True
with requests.post(f"{options.url}/v1/chat/completions", json=body, headers=headers, stream=True, timeout=600) as lines:
    for line in lines.iter_lines():
        data = line.decode().removeprefix("data: ")
        if data and data != "[DONE]":
            print(json.loads(data)["choices"][0]["delta"].get("content", ""), end="", flush=True)
print()
