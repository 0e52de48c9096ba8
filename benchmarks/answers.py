"""Responses to a dataset per second: `engine.answer`, as `infer` and `eval` use it, beside plain `generate` in batches.

    python benchmarks/answers.py [--layers 6] [--hidden 256] [--vocabulary 32000] [--rows 96] [--max_rows 16]
        [--median 60] [--spread 0.9] [--longest 512] [--repeats 3] [--model llmtune-tiny]

Greedy responses to prompts of 50 to 300 tokens. The model is random, so that no response would end by itself: each ends
after a number of tokens drawn from a long-tailed distribution, as in benchmarks/rollouts.py. generate takes the rows in
batches of --max_rows, with left padding, and each batch ends with its longest response. They are run in turn; printed
are response tokens/s and their ratio.
"""

from __future__ import annotations

import argparse
from functools import partial
from types import SimpleNamespace
from typing import Any

from rollouts import by_generate, compare, make_model, make_requests
from transformers import GenerationConfig

from llmtune.inference.answering import generations
from llmtune.inference.engine import Adapters, Engine
from llmtune.inference.generation import Generation
from llmtune.inference.sampling import Sampling
from llmtune.types import Encoded


class Digits:
    """A tokenizer whose text nobody reads."""

    pad_token_id = 0

    def decode(self, ids: list[int], **_: Any) -> str:
        return "x" * len(ids)


def by_llmtune(model: Any, requests: list[Any], max_rows: int) -> int:
    template: Any = SimpleNamespace(
        tokenizer=Digits(), stop_token_ids=[], stop_strings=[], thought_tokens={}, media=None, answer_frame=("", "")
    )
    engine = Engine(model, template, Adapters(model, template))
    rows = [
        Generation(Encoded(list(one.prompt_ids)), Sampling(max_new_tokens=one.max_tokens), template) for one in requests
    ]
    return sum(len(row.ids) for row in generations(engine, rows, max_rows=max_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2", choices=["qwen2", "llmtune-tiny"])
    for name, value in {"layers": 6, "hidden": 256, "vocabulary": 32000, "rows": 96, "max_rows": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"median": 60, "longest": 512, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--spread", type=float, default=0.9, help="standard deviation of the lengths' logarithms")
    args = parser.parse_args()
    args.prompts, args.group = args.rows, 1
    model = make_model(args)
    model.generation_config = GenerationConfig()  # no stop token
    requests = make_requests(args, model.config.vocab_size)
    compare({"generate": partial(by_generate, sampled=False), "llmtune": by_llmtune}, model, requests, args)


if __name__ == "__main__":
    main()
