"""LongLoRA's shifted sparse attention: that of a naive mask in training, plain in evaluation."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.training.attention import group_size, register_shifted

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip


def naive(query, key, value, group):
    """[H, T, D] each: every head by a mask of its own, written down from the definition."""
    heads, length, width = query.shape
    out = torch.empty_like(query)
    for head in range(heads):
        shift = 0 if head < heads // 2 else group // 2
        for at in range(length):
            # Boundaries of groups lie at shift, shift + group, ...; what lies before the first is a group, too.
            seen = [other for other in range(at + 1) if (other - shift) // group == (at - shift) // group]
            scores = query[head, at] @ key[head * key.shape[0] // heads, seen].T / width**0.5
            out[head, at] = scores.softmax(-1) @ value[head * key.shape[0] // heads, seen]
    return out


class Module(torch.nn.Module):
    num_key_value_groups = 2


def call(group, length, *, training=True, mask=None):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, heads, length, 8, generator=generator) for heads in (4, 2, 2))
    function = ALL_ATTENTION_FUNCTIONS[register_shifted(group)]
    out, _ = function(Module().train(training), query, key, value, mask)
    return out, query, key, value


@pytest.mark.parametrize(("max_length", "group"), [(32, 8), (30, 8), (33, 10), (4, 2), (2048, 512)])
def test_a_group_is_a_quarter(max_length, group):
    assert group_size(max_length) == group


@pytest.mark.parametrize("length", [16, 9, 23, 31, 32])  # whole groups, and none
def test_shifted_attention_equals_a_naive_loop(length):
    out, query, key, value = call(8, length)
    assert out.shape == (2, length, 4, 8)
    for row in range(2):
        expected = naive(query[row], key[row], value[row], 8).transpose(0, 1)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "training"), [(24, False), (8, True), (5, True)])
def test_plain_in_evaluation_and_within_a_group(length, training):
    out, query, key, value = call(8, length, training=training)
    for row in range(2):
        expected = naive(query[row], key[row], value[row], 100 * length).transpose(0, 1)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
def test_shifted_attention_works_in_each_architecture(kind):
    config = AutoConfig.for_model(kind, **SIZES, head_dim=8, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(1, 64, (2, 32), generator=torch.Generator().manual_seed(1))
    padded = torch.ones_like(ids)
    padded[1, 20:] = 0
    before = model.eval()(input_ids=ids, attention_mask=padded).logits
    model.set_attn_implementation(register_shifted(8))
    torch.testing.assert_close(model(input_ids=ids, attention_mask=padded).logits, before)
    model.train()
    shifted = model(input_ids=ids, attention_mask=padded, use_cache=False).logits
    torch.testing.assert_close(shifted[:, :4], before[:, :4], atol=1e-5, rtol=1e-4)
    assert (shifted[0, 20:] - before[0, 20:]).abs().max() > 1e-3
    cut = model(input_ids=ids[1:, :20], use_cache=False).logits  # padding changes nothing
    torch.testing.assert_close(shifted[1:, :20], cut, atol=1e-5, rtol=1e-4)
    shifted[0, :16].sum().backward()
    changed = ids.clone()
    changed[0, 20:] = 3  # what comes later is never seen
    torch.testing.assert_close(model(input_ids=changed, use_cache=False).logits[0, :20], shifted[0, :20].detach())
