"""Llama with ALiBi: any number of heads, any attention, a cache, and a folder that plain transformers loads."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

from llmtune.models.ports import modeling_llama_alibi
from llmtune.models.ports.modeling_llama_alibi import LlamaAlibiConfig, LlamaAlibiForCausalLM, alibi_slopes

from .layouts import random_model

IDS = torch.arange(24).view(2, 12) * 7 % 96


def make(heads: int = 5) -> LlamaAlibiForCausalLM:
    config = LlamaAlibiConfig(
        vocab_size=96, hidden_size=8 * heads, intermediate_size=40, num_hidden_layers=2, num_attention_heads=heads
    )
    return random_model(LlamaAlibiForCausalLM, config)


def power_of_two(n: int) -> list[float]:
    return [(2 ** (-(2 ** -(n.bit_length() - 1 - 3)))) ** (i + 1) for i in range(n)]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (4, power_of_two(4)),
        (5, power_of_two(4) + power_of_two(8)[:1]),
        (12, power_of_two(8) + power_of_two(16)[0::2][:4]),
        (40, power_of_two(32) + power_of_two(64)[0::2][:8]),
    ],
)
def test_alibi_slopes_equal_the_papers(heads, expected):
    assert alibi_slopes(heads) == pytest.approx(expected)


def by_hand(model: LlamaAlibiForCausalLM, ids: Tensor, slopes: list[float]) -> Tensor:
    """The original's arithmetic on plain Llama: no rotation, and each key's column times the slope of the head."""
    plain = LlamaForCausalLM(model.config).double().eval()
    plain.load_state_dict(model.state_dict())
    size = ids.shape[1]
    bias = torch.tensor(slopes).double()[:, None, None] * torch.arange(size)
    mask = torch.full((size, size), float("-inf")).triu(1) + bias
    return plain(ids, attention_mask=mask[None], position_ids=torch.zeros_like(ids)).logits


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [5, 40])
def test_alibi_logits_equal_a_computation_by_hand(heads, attention):
    model = make(heads).double()
    model.set_attn_implementation(attention)
    slopes = power_of_two(4) + power_of_two(8)[:1] if heads == 5 else power_of_two(32) + power_of_two(64)[0::2][:8]
    expected = by_hand(model, IDS, slopes)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model(inputs_embeds=model.model.embed_tokens(IDS)).logits, expected, atol=1e-5, rtol=0
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_a_cache_in_pieces(static):
    model = make()
    cache = StaticCache(config=model.config, max_cache_len=20) if static else None
    logits = []
    for piece in (IDS[:, :5], IDS[:, 5:6], IDS[:, 6:]):
        found = model(piece, past_key_values=cache, use_cache=True)
        cache = found.past_key_values
        logits.append(found.logits)
    torch.testing.assert_close(torch.cat(logits, 1), model(IDS).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_beams_and_static_generation():
    model = make()
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    greedy = model.generate(IDS, attention_mask=mask, **options)
    without = model.generate(IDS, attention_mask=mask, use_cache=False, **options)
    assert greedy.tolist() == without.tolist()
    static = model.generate(IDS, attention_mask=mask, cache_implementation="static", **options)
    assert greedy.tolist() == static.tolist()
    beams = model.generate(IDS, attention_mask=mask, num_beams=2, **options)
    assert beams.tolist() == model.generate(IDS, attention_mask=mask, num_beams=2, use_cache=False, **options).tolist()


def test_half_precision_keeps_near_keys_apart():
    """Columns counted from the query: the bias of the nearest keys is exact in bf16, however long the row."""
    model = make()
    mask = torch.zeros(1, 1, 4096, 4096, dtype=torch.bfloat16)
    bias = model.model._with_bias(mask[..., -4:, :], 4092, torch.bfloat16)
    assert bias[0, 0, -1, -4:].tolist() == [-0.75, -0.5, -0.25, 0.0]
    assert bias.dtype is torch.bfloat16


def test_checkpointing_does_not_change_gradients():
    model = make().train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*gradients)


def test_the_file_stands_alone():
    tree = ast.parse(Path(modeling_llama_alibi.__file__).read_text(encoding="utf-8"))
    imports = [part for part in ast.walk(tree) if isinstance(part, ast.ImportFrom | ast.Import)]
    named = {part.module if isinstance(part, ast.ImportFrom) else part.names[0].name for part in imports}
    assert {name.partition(".")[0] for name in named if name} <= {
        "__future__",
        "copy",
        "math",
        "typing",
        "torch",
        "transformers",
    }


@pytest.mark.slow
def test_plain_transformers_without_llmtune(tmp_path):
    """A process that cannot import llmtune loads the folder and computes the same."""
    model = make()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "modeling_llama_alibi.LlamaAlibiConfig",
        "AutoModelForCausalLM": "modeling_llama_alibi.LlamaAlibiForCausalLM",
    }
    script = (
        "import sys; sys.modules['llmtune'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('model', trust_remote_code=True)\n"
        "ids = torch.arange(24).view(2, 12) * 7 % 96\n"
        "with torch.no_grad(): torch.save(model(ids).logits, 'logits.pt')\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with torch.no_grad():
        expected = model(IDS).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-6, rtol=0)
