"""Sampled responses per second: llmtune's decode loop beside plain `model.generate`, in one run.

    python benchmarks/rollouts.py [--layers 6] [--hidden 256] [--vocabulary 32000] [--max_rows 64] [--prompts 32]
        [--group 8] [--repeats 3] [--model llmtune-tiny]

A step of GRPO: `--group` responses to each of `--prompts` prompts of 50 to 300 tokens. The model is a random Qwen2 (or
llmtune-tiny, also random), so that no response would end by itself: each ends after a number of tokens drawn from a
long-tailed distribution (log-normal, median `--median`, cut at `--longest`), which neither way knows before it is
there. Both sample from the whole vocabulary at temperature 1, with as many rows at a time, in fp32 on a CPU, in bf16 on
a GPU. generate takes the responses in the order of the prompts, with left padding, and each of its batches ends with
its longest response, as in a trainer that calls it. They are run in turn; printed are response tokens/s and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

from llmtune.inference.decode_forward import pad_left
from llmtune.rollouts.engine import RolloutRequest
from llmtune.rollouts.own import OwnEngine, generating


def make_model(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    if args.model == "llmtune-tiny":
        from llmtune import InferArguments
        from llmtune.inference.load import load_engine

        return load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True)).model
    heads = max(args.hidden // 64, 1)
    config = Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 4,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
    )
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    return Qwen2ForCausalLM(config).to(device, dtype).eval()


def make_requests(args: argparse.Namespace, vocabulary: int) -> list[RolloutRequest]:
    chosen = np.random.default_rng(0)
    found = []
    for place in range(args.prompts):
        prompt = tuple(chosen.integers(3, vocabulary, size=chosen.integers(50, 301)).tolist())
        lengths = np.exp(chosen.normal(np.log(args.median), args.spread, args.group)).clip(1, args.longest)
        found += [RolloutRequest(prompt, (0, place, member), int(length)) for member, length in enumerate(lengths)]
    return found


class Lengths(StoppingCriteria):
    """Ends each row after its own number of tokens."""

    def __init__(self, lengths: list[int], start: int) -> None:
        self.ends = torch.tensor(lengths) + start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids.shape[1] >= self.ends).to(input_ids.device)


def by_generate(model: Any, requests: list[RolloutRequest], max_rows: int, *, sampled: bool = True) -> int:
    count = 0
    for start in range(0, len(requests), max_rows):
        batch = requests[start : start + max_rows]
        inputs = pad_left([one.prompt_ids for one in batch], 0)
        lengths = [one.max_tokens for one in batch]
        with generating(model):
            model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                generation_config=GenerationConfig(
                    **({"do_sample": True, "temperature": 1.0, "top_k": 0} if sampled else {}),
                    max_new_tokens=max(lengths),
                    pad_token_id=0,
                ),
                stopping_criteria=StoppingCriteriaList([Lengths(lengths, inputs["input_ids"].shape[1])]),
            )
        count += sum(lengths)
    return count


def by_llmtune(model: Any, requests: list[RolloutRequest], max_rows: int) -> int:
    endless = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0), stop_token_ids=[], stop_strings=[], thought_tokens={}
    )
    engine = OwnEngine(lambda: model, endless, max_rows=max_rows)
    return sum(len(one.ids) for one in engine.sample(requests))


def compare(ways: dict[str, Callable[..., int]], model: Any, requests: list[Any], args: argparse.Namespace) -> None:
    """Print the tokens and the rates of both ways, run in turn, and their ratio. `ways`: generate, then llmtune."""
    lengths = [one.max_tokens for one in requests]
    said = f"{sum(lengths):,} tokens, median {statistics.median(lengths):g}, longest {max(lengths)}"
    print(f"{len(lengths)} responses: {said}")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            count = way(model, requests, args.max_rows)
            rates[name].append(count / (time.perf_counter() - began))
    ratios = [ours / theirs for ours, theirs in zip(rates["llmtune"], rates["generate"], strict=True)]
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):,.0f} tokens/s ({', '.join(f'{rate:,.0f}' for rate in found)})")
    print(f"llmtune is {statistics.median(ratios):.2f} times as fast ({', '.join(f'{one:.2f}' for one in ratios)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2", choices=["qwen2", "llmtune-tiny"])
    for name, value in {"layers": 6, "hidden": 256, "vocabulary": 32000, "max_rows": 64, "prompts": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"group": 8, "median": 60, "longest": 512, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--spread", type=float, default=0.9, help="standard deviation of the lengths' logarithms")
    args = parser.parse_args()
    model = make_model(args)
    model.generation_config = GenerationConfig()  # no stop token
    requests = make_requests(args, model.config.vocab_size)
    compare({"generate": by_generate, "llmtune": by_llmtune}, model, requests, args)


if __name__ == "__main__":
    main()
