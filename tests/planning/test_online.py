"""`llmtune plan grpo` and `ppo`: the KV cache of rollouts, and the roles beside the policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Qwen2Config

from llmtune import GrpoArguments, PpoArguments
from llmtune.inference.refill import PREFILL_TOKENS as of_decoding
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.tiny import tiny_folder
from llmtune.planning.kv import kv_bytes
from llmtune.planning.memory import Estimate, Estimator
from llmtune.planning.online import PREFILL_TOKENS, TRAINED_BYTES
from llmtune.planning.workload import Batch
from llmtune.rollouts.engine import RolloutRequest
from llmtune.rollouts.own import OwnEngine
from llmtune.templates.lookup import get_template

from .test_memory import peak_of

pytestmark = pytest.mark.medium
SETTINGS: dict[str, Any] = {"model_type": "llmtune-tiny", "dataset": ["tiny-sums"], "rewards": ["accuracy"]}


def plain_qwen2(folder: Path) -> tuple[Any, Path]:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=2048, tie_word_embeddings=False, max_position_embeddings=2048,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model, folder


def estimate(made: Any, **options: Any) -> Estimate:
    args = made(**(SETTINGS | options))
    args.gradient_checkpointing = "none"
    return Estimator(MODEL_MAPPING["llmtune-tiny"], tiny_folder(), torch.float32, on_gpu=False).estimate(
        args, Batch(8, 64, 200)
    )


def test_the_cache_of_a_token_is_that_of_the_model():
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32)
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.arange(1, 11)[None], past_key_values=cache, use_cache=True)
    held = sum(one.numel() * one.element_size() for layer in cache.layers for one in (layer.keys, layer.values))
    assert held == 10 * kv_bytes(model.config, torch.float32)


def test_rollouts_take_turns_with_activations():
    few, many = estimate(GrpoArguments, rollout_batch_size=1), estimate(GrpoArguments, rollout_batch_size=32)
    assert many.rollouts > 16 * few.rollouts
    assert few.roles == {}


def test_roles_of_ppo():
    adapters = estimate(PpoArguments)
    assert adapters.roles["critic: an adapter"] == adapters.trainable * TRAINED_BYTES
    assert adapters.roles["reference: no adapter"] == 0
    full = estimate(PpoArguments, sft_type="full")
    assert full.roles["critic: a model of its own"] == full.parameters * TRAINED_BYTES
    assert full.roles["reference: weights kept"] == full.trainable * 4
    assert full.total >= full.weights + full.optimizer + sum(full.roles.values())


def test_a_model_beside_the_base_is_said(tmp_path):
    found = estimate(PpoArguments, rewards=[f"rm:{tmp_path}"])
    assert [name for name in found.roles if name.startswith("reward model")] == [
        f"reward model {tmp_path.name}: not on this machine"
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's allocator is measured")
@pytest.mark.parametrize(("rows", "prompt", "new"), [(16, 200, 100), (32, 50, 200), (8, 400, 40)])
def test_the_memory_of_rollouts_is_within_the_estimate(rows, prompt, new, tmp_path):
    """Of caches, the choice of tokens, and the passes over prompts and tokens; all responses are of the same length."""
    model, folder = plain_qwen2(tmp_path)
    template = get_template("chatml", AutoTokenizer.from_pretrained(tiny_folder()))
    template.info = dataclasses.replace(template.info, suffix=(), stop_words=())
    engine = OwnEngine(lambda: model, template, max_rows=rows, quiet=True)
    ids = torch.randint(10, 2000, (rows // 4, prompt)).tolist()
    asked = [RolloutRequest(tuple(ids[number // 4]), (number,), new) for number in range(rows)]
    engine.sample(asked[:4])  # what a first pass leaves behind
    measured = peak_of(lambda: engine.sample(asked))
    args = GrpoArguments(**SETTINGS, rollout_batch_size=rows, max_new_tokens=new, batch_size=rows, num_generations=4)
    args.gradient_checkpointing = "none"
    batch = Batch(rows, prompt + new, rows * new)
    estimator = Estimator(MODEL_MAPPING["llmtune-tiny"], folder, torch.float32, on_gpu=False)
    planned = estimator.estimate(args, batch).rollouts
    assert of_decoding == PREFILL_TOKENS
    assert measured < 1.05 * planned
    assert measured > 0.4 * planned
