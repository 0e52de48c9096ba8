"""A prompt computed once for several responses gives what each response gives behind the prompt, alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.models.packed_attention import VARLEN, branches, register_varlen, shares_prompts
from llmtune.training.build import why_not_shared

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
ATTENTIVE = {
    "llama": {}, "mistral": {"sliding_window": 6}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8},
    "phi3": {"pad_token_id": 0}, "olmo2": {}, "starcoder2": {}, "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}  # fmt: skip
PROMPT, RESPONSES = 11, (4, 9, 1)


def model_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | options)))
    register_varlen()
    model.set_attn_implementation(VARLEN)
    return model.eval()


def sequences() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(1, 64, (PROMPT + sum(RESPONSES),), generator=generator)
    prompt, *responses = drawn.split([PROMPT, *RESPONSES])
    return prompt, responses


def shared_inputs(prompt: torch.Tensor, responses: list[torch.Tensor]) -> dict[str, Any]:
    trunk = len(prompt) - 1
    ids = torch.cat([prompt[:-1], *(torch.cat([prompt[-1:], one]) for one in responses)])
    positions = torch.cat([torch.arange(trunk), *(trunk + torch.arange(1 + len(one)) for one in responses)])
    bounds = branches([(trunk, 0), *((1 + len(one), trunk) for one in responses)])
    return {"input_ids": ids[None], "position_ids": positions[None], "use_cache": False, **bounds}


@pytest.mark.parametrize("kind", ATTENTIVE)
def test_logits_and_gradients_equal_those_of_each_response_alone(kind):
    is_moe = "num_experts" in ATTENTIVE[kind] or "num_local_experts" in ATTENTIVE[kind]
    model = model_of(kind, **ATTENTIVE[kind])
    model = model if is_moe else model.double()  # experts have no fp64; norms and RoPE of all compute in fp32
    prompt, responses = sequences()
    trunk = len(prompt) - 1

    def gradients(losses: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        losses.sum().backward()
        return [value.grad.clone() for value in model.parameters() if value.grad is not None]

    together = model(**shared_inputs(prompt, responses)).logits[0, trunk:]
    alone = torch.cat(
        [model(input_ids=torch.cat([prompt, one])[None], use_cache=False).logits[0, trunk:] for one in responses]
    )
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6 if is_moe else 1e-7)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(2), dtype=alone.dtype)
    ours, theirs = gradients(together * weights), gradients(alone * weights)
    largest = max(float(value.abs().max()) for value in theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).abs().max()) < (1e-6 if is_moe else 1e-7) * largest
    assert shares_prompts(model)


def test_keys_that_leak_between_responses_are_noticed():
    model = model_of("llama")
    prompt, responses = sequences()
    wrong = shared_inputs(prompt, responses)
    wrong["key_index"] = wrong["key_index"].flip(0)
    right = model(**shared_inputs(prompt, responses)).logits
    assert (model(**wrong).logits - right).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("mamba", {"state_size": 4, "num_heads": 4}, "mixes positions|attention|cannot compute"),
        ("gemma2", {"head_dim": 8}, "cannot compute a shared prompt"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "mixes positions|cannot compute|attention"),
    ],
)
def test_a_class_that_mixes_positions_otherwise_is_refused_by_name(kind, options, reason):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | options)))
    register_varlen()
    try:
        model.set_attn_implementation(VARLEN)
    except ValueError as err:
        pytest.fail(f"the class would be refused before: {err}")
    found = why_not_shared(model, has_images=False)
    assert type(model).__name__ in found
    assert re.search(reason, found)


def test_what_excludes_a_shared_prompt_is_said():
    model = model_of("llama")
    assert why_not_shared(model, has_images=False) == ""
    assert "images" in why_not_shared(model, has_images=True)
    model.set_attn_implementation("sdpa")
    assert "LlamaForCausalLM runs with sdpa" in why_not_shared(model, has_images=False)
