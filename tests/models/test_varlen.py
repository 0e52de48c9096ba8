"""Attention for rows behind one another: the same as each row by itself, forward and gradients; refused where not."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.models.packed_attention import VARLEN, keeps_rows_apart, register_varlen, segments

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
LENGTHS = (7, 1, 11, 3)


def tiny(kind: str, attention: str, **changes):
    register_varlen()
    config = AutoConfig.for_model(kind, **(SIZES | {"head_dim": 8, "pad_token_id": 0} | changes))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def packed(device: str = "cpu"):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 64, (1, sum(LENGTHS)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return ids.to(device), positions.to(device)


def row_by_row(model, ids):
    return torch.cat([model(input_ids=row, use_cache=False).logits for row in ids.split(LENGTHS, 1)], 1)


def test_segments_are_the_bounds_of_packed_sequences():
    _, positions = packed()
    found = segments(positions)
    assert found["cu_seq_lens_q"].tolist() == found["cu_seq_lens_k"].tolist() == [0, 7, 8, 19, 22]
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert found["max_length_q"] == found["max_length_k"] == 11


KINDS = {
    "qwen2": {},
    "llama": {"num_key_value_heads": 4},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"num_key_value_heads": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_as_if_alone(kind):
    varlen, plain = tiny(kind, VARLEN, **KINDS[kind]), tiny(kind, "sdpa", **KINDS[kind])
    ids, positions = packed()
    weight = torch.randn(64, generator=torch.Generator().manual_seed(2))
    together = varlen(input_ids=ids, position_ids=positions, use_cache=False, **segments(positions)).logits
    alone = row_by_row(plain, ids)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    (together @ weight).sum().backward()
    (alone @ weight).sum().backward()
    for (name, ours), theirs in zip(varlen.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: name + text
        )


def test_no_mask_is_made(monkeypatch):
    model = tiny("qwen2", VARLEN)
    ids, positions = packed()
    shapes = []
    own = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *args, attn_mask=None, **options):
        shapes.append(query.shape[2])
        assert attn_mask is None
        return own(query, *args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(input_ids=ids, position_ids=positions, use_cache=False, **segments(positions))
    assert shapes == [*LENGTHS] * 2


def test_packed_rows_without_segments_are_an_error():
    ids, positions = packed()
    with pytest.raises(ValueError, match="sequence bounds"):
        tiny("qwen2", VARLEN)(input_ids=ids, position_ids=positions, use_cache=False)


def test_padding_and_generation_are_those_of_sdpa():
    varlen, plain = tiny("qwen2", VARLEN), tiny("qwen2", "sdpa")
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(varlen.generate(ids, **options), plain.generate(ids, **options))


def test_varlen_refuses_softcap_sinks_and_caches():
    model = tiny("gemma2", VARLEN)
    ids, positions = packed()
    with pytest.raises(ValueError, match="softcap"):
        model(input_ids=ids, position_ids=positions, use_cache=False, **segments(positions))
    with pytest.raises(ValueError, match="softcap"):
        keeps_rows_apart(model)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_varlen_kernel_equals_sdpa_per_sequence(kind, dtype):
    """fp32 weights under autocast, as full fine-tuning has them, and bf16: against each row alone under SDPA."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sizes = {"hidden_size": 128, "head_dim": 32}  # the kernel wants multiples of 8
    varlen, plain = (tiny(kind, name, **(KINDS[kind] | sizes)).to("cuda") for name in (VARLEN, "sdpa"))
    varlen.to(dtype), plain.to(dtype)
    ids, positions = packed("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype is torch.float32):
        together = varlen(input_ids=ids, position_ids=positions, use_cache=False, **segments(positions)).logits
        alone = row_by_row(plain, ids)
    torch.testing.assert_close(together.float(), alone.float(), atol=3e-2, rtol=3e-2)
    together.float().square().sum().backward()
    alone.float().square().sum().backward()
    for ours, theirs in zip(varlen.parameters(), plain.parameters(), strict=True):
        gap = (ours.grad.float() - theirs.grad.float()).norm() / theirs.grad.float().norm().clamp(min=1e-3)
        assert gap < 0.05
