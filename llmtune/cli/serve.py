"""`llmtune serve`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtune.arguments.parser import parse
from llmtune.arguments.service import ServeArguments
from llmtune.cli.dry_run import DryRunArguments, show_serve
from llmtune.utils.system import need

SUMMARY = """
Serve a checkpoint with an OpenAI-compatible API: chat, completions, streaming, tools, JSON. Its training settings are
read from the checkpoint:
  llmtune serve --ckpt_dir output/llmtune-tiny/v0-.../checkpoint-50
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "llmtune-tiny", "messages": [{"role": "user", "content": "Who are you?"}]}'
Several adapters over one base model; a request selects one by its `model`:
  llmtune serve --model_type qwen2.5-7b-instruct --adapters law=output/.../checkpoint-90 med=output/.../checkpoint-70
Access from other machines needs an API key:
  LLMTUNE_API_KEY=... llmtune serve --ckpt_dir ... --host 0.0.0.0
Defaults of a request (temperature, top_p, max_tokens, ...) are the generation flags.
"""
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(kw_only=True)
class ServeCommand(DryRunArguments, ServeArguments):
    """Server."""


ARGUMENTS = ServeCommand


def run(argv: Sequence[str]) -> int:
    args = parse(ServeCommand, argv, command="serve", summary=SUMMARY)
    if args.backend == "vllm":
        from llmtune.serving.vllm import run_vllm

        return run_vllm(args)
    if args.dry_run:
        show_serve(args)
        return 0
    need(NEEDED, "llmtune serve", extra="serve")
    from llmtune.serving.app import serve

    serve(args)
    return 0
