"""Memory of online training beside a training step: the KV cache of rollouts, and the roles beside the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmtune.arguments.online import OnlineStage, PpoArguments
from llmtune.checkpoint import base_of, checkpoint_kind, checkpoint_of
from llmtune.errors import LlmtuneError
from llmtune.models.ports import native_config
from llmtune.planning.kv import CHOICE_BYTES, kv_bytes
from llmtune.rewards.specs import parse_rewards

if TYPE_CHECKING:
    from llmtune.planning.memory import Estimate
    from llmtune.planning.workload import Batch

TRAINED_BYTES = 16
"""Bytes of a trained parameter in fp32: weight, gradient, and the two states of Adam."""
PREFILL_TOKENS = 4096
"""Tokens of prompts that are computed in one pass, as in `inference.refill`."""


def with_rollouts(estimate: Estimate, args: OnlineStage, batch: Batch, folder: Path, dtype: torch.dtype) -> Estimate:
    """Return the estimate of an online run, with what it holds beside a training step."""
    config = native_config(folder, trust_remote_code=args.trust_remote_code).get_text_config()
    length = batch.length if not batch.packed else batch.length // max(args.batch_size, 1)
    memory = 0 if args.rollout_url else rollout_bytes(args, config, length, dtype)
    return replace(estimate, rollouts=memory, roles=roles_of(args, estimate))


def rollout_bytes(args: OnlineStage, config: Any, length: int, dtype: torch.dtype) -> int:
    """Return the most bytes of a round of sampling: caches, the pass over new prompts, and the choice of tokens.

    Args:
        length: Tokens of the longest prompt with its longest response.
    """
    rows = rows_at_a_time(args)
    prompts, tokens = -(-rows // args.num_generations), max(length - args.max_new_tokens, 1)
    by_token = kv_bytes(config, dtype)
    cache = rows * length * by_token
    growing = cache // int(config.num_hidden_layers)  # a layer at a time is copied into more room
    width = 6 * int(config.hidden_size) + 3 * int(getattr(config, "intermediate_size", 0) or 4 * config.hidden_size)
    passed = min(prompts * tokens, max(PREFILL_TOKENS, tokens)) * width * dtype.itemsize
    choice = rows * CHOICE_BYTES * int(config.vocab_size)
    return cache + growing + prompts * tokens * by_token + passed + choice


def rows_at_a_time(args: OnlineStage) -> int:
    """Return the responses that a device generates at a time."""
    return min(args.rollout_batch_size, args.step_size(1) * args.num_mini_batches)


def roles_of(args: OnlineStage, estimate: Estimate) -> dict[str, int]:
    """Return the bytes of each role beside the policy, by name; a role that is no weights of its own has 0."""
    full = args.sft_type == "full"
    found = {}
    if args.needs_reference:
        own = full or args.peft_path is not None or args.lora_init != "default"
        size = estimate.weights if args.reference else estimate.trainable * 4 if own else 0
        found["reference: " + ("another model" if args.reference else "weights kept" if own else "no adapter")] = size
    if isinstance(args, PpoArguments):
        parameters = estimate.parameters if full else estimate.trainable
        found["critic: " + ("a model of its own" if full else "an adapter")] = parameters * TRAINED_BYTES
    for spec in parse_rewards(args.rewards):
        if spec.kind == "model":
            text, size = _reward_model(args, Path(spec.target).expanduser())
            found[f"reward model {spec.name}: {text}"] = size
    return found


def _reward_model(args: OnlineStage, place: Path) -> tuple[str, int]:
    """Where a reward model computes, and its bytes."""
    try:
        folder = checkpoint_of(place)
        if checkpoint_kind(folder) == "full":
            return "a model of its own", _size(folder)
        base = Path(str(base_of(folder)))
    except LlmtuneError:
        return "not on this machine", 0
    if args.sft_type != "full" and base.resolve() == args.folder(weights=True).resolve():
        return "an adapter", _size(folder)
    return "a model of its own", _size(folder) + _size(base)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
