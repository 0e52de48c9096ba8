"""Each family against what its original code computed, and the laws that any model has to keep."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmtune.errors import ModelError
from llmtune.models.ports import causal_lm_loader
from llmtune.types import IGNORE_INDEX
from llmtune.utils.logging import get_logger

from .conftest import FAMILIES

CLOSE = 1e-5
NATIVE_TYPES = {
    "qwen_v1": "qwen2",
    "baichuan_7b_v1": "llama",
    "baichuan2_7b": "llama",
    "baichuan_13b_v1": "llama_alibi",
    "chatglm2_6b": "glm",
    "internlm_v1_7b": "llama",
}


def gap(found: Tensor, expected: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference of logits [B, T, V] at positions that are no padding."""
    difference = (found - expected).abs().amax(-1)
    return float((difference if mask is None else difference * mask).max())


def masked_labels(ids: Tensor) -> Tensor:
    labels = ids.clone()
    labels[:, :5] = IGNORE_INDEX
    return labels


@torch.no_grad()
def test_logits_equal_the_original_code(oracle):
    assert gap(oracle.model(oracle["inputs"]).logits, oracle["logits"]) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("side", ["rightpad", "leftpad"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_logits_equal_the_original_code(oracle, side, attention):
    mask = oracle[f"mask_{side}"]
    oracle.model.set_attn_implementation(attention)
    found = oracle.model(oracle[f"inputs_{side}"], attention_mask=mask).logits
    oracle.model.set_attn_implementation("sdpa")
    assert gap(found, oracle[f"logits_{side}"], mask) < CLOSE


def test_the_loss_equals_the_original_code(oracle):
    loss = oracle.model(oracle["inputs"], labels=masked_labels(oracle["inputs"])).loss
    assert abs(loss.item() - oracle.meta["loss_labels_first5_masked"]) < CLOSE


@pytest.mark.parametrize("oracle", [name for name in FAMILIES if name != "baichuan2_7b"], indirect=True)
def test_the_gradient_norm_equals_the_original_code(oracle):
    """Of all parameters. Baichuan2's original differentiates through the normalisation of its head; we do not."""
    model = oracle.fresh()
    model(oracle["inputs"], labels=masked_labels(oracle["inputs"])).loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert abs(float(norm) - oracle.meta["train_gradnorm"]) < 1e-4


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_equal_the_original_code(oracle, use_cache):
    prompt = oracle["inputs"][:1]
    made = oracle.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, do_sample=False,
        use_cache=use_cache,
    )  # fmt: skip
    assert made[0, prompt.shape[1] :].tolist() == oracle.meta["greedy8_row0"]


def test_generation_does_not_depend_on_the_batch(oracle):
    """What a row continues with does not depend on what it is batched with."""
    ids = oracle["inputs"]
    pad = torch.zeros(1, 5, dtype=ids.dtype)
    batch = torch.cat([ids[:1], torch.cat([pad, ids[:1, :-5]], 1)])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    together = oracle.model.generate(batch, attention_mask=mask, **options)[:, ids.shape[1] :]
    for row, prompt in zip(together, (ids[:1], ids[:1, :-5]), strict=True):
        alone = oracle.model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert row.tolist() == alone[0, prompt.shape[1] :].tolist()


def test_packed_rows_do_not_see_each_other(oracle):
    first, second = oracle["inputs"][:1], oracle["inputs"][1:2, :7]
    packed = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(first.shape[1]), torch.arange(7)])[None]
    weights = torch.linspace(-1, 1, oracle["logits"].shape[-1])

    def run(*calls: dict[str, Any]) -> tuple[Tensor, Tensor]:
        oracle.model.zero_grad()
        logits = torch.cat([oracle.model(**call, use_cache=False).logits for call in calls], 1)
        (logits.softmax(-1) @ weights).sum().backward()
        return logits.detach(), oracle.model.model.embed_tokens.weight.grad.clone()

    apart = run({"input_ids": first}, {"input_ids": second})
    together = run({"input_ids": packed, "position_ids": positions})
    oracle.model.zero_grad()
    assert gap(together[0], apart[0]) < CLOSE
    torch.testing.assert_close(together[1], apart[1], atol=1e-5, rtol=1e-4)
    with torch.no_grad():  # and the test can fail: without positions, the rows do see each other
        assert gap(oracle.model(packed, use_cache=False).logits, apart[0]) > 1e-2


def test_lora_merged_equals_unmerged(oracle):
    """Adapters on every linear layer but the head get gradients, and merged equals unmerged."""
    model = get_peft_model(
        oracle.fresh(), LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    )
    linear = [name for name, part in oracle.model.named_modules() if isinstance(part, nn.Linear) and name != "lm_head"]
    adapted = [name for name, part in model.base_model.model.named_modules() if hasattr(part, "lora_A")]
    assert sorted(adapted) == sorted(linear)
    assert linear
    model(oracle["inputs"], labels=masked_labels(oracle["inputs"])).loss.backward()
    gradients = {name: part.grad for name, part in model.named_parameters() if part.requires_grad}
    assert len(gradients) == 2 * len(linear)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    with torch.no_grad():
        model.eval()
        unmerged = model(oracle["inputs"]).logits
        assert gap(unmerged, oracle["logits"]) > 1e-2
        assert gap(model.merge_and_unload()(oracle["inputs"]).logits, unmerged) < CLOSE


@torch.no_grad()
def test_saved_folders_are_native(oracle, tmp_path, load, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    oracle.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(oracle.model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == NATIVE_TYPES[oracle.family]
    has_code = oracle.family == "baichuan_13b_v1"
    assert ("auto_map" in config) == has_code
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=has_code)
    again = load(tmp_path)  # llmtune knows its own without trust
    for model in (plain, again):
        assert gap(model(oracle["inputs"]).logits, oracle["logits"]) < CLOSE


@torch.no_grad()
def test_options_reach_transformers(oracle):
    """As for any other model, where it is loaded by from_pretrained; peft reads the folder's name."""
    model = oracle.fresh(attn_implementation="eager", device_map="cpu")
    assert model.config._attn_implementation == "eager"
    assert model.name_or_path == model.config._name_or_path == str(oracle.folder)
    assert gap(model(oracle["inputs"]).logits, oracle["logits"]) < CLOSE
    half = causal_lm_loader(oracle.folder).from_pretrained(oracle.folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_quantising_while_loading_equals_the_converted_folder(oracle, tmp_path):
    """The same 4-bit numbers as those of the converted folder, loaded the ordinary way."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    options = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "dtype": torch.float32}
    oracle.model.save_pretrained(tmp_path)
    found = causal_lm_loader(oracle.folder).from_pretrained(oracle.folder, **options).state_dict()
    expected = causal_lm_loader(tmp_path).from_pretrained(tmp_path, **options).state_dict()
    assert any(name.endswith("quant_map") for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@torch.no_grad()
def test_pickles_need_allow_pickle(oracle, tmp_path, load):
    shutil.copy(oracle.folder / "config.json", tmp_path)
    torch.save(load_file(oracle.folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="--allow_pickle true"):
        load(tmp_path)
    assert gap(load(tmp_path, allow_pickle=True)(oracle["inputs"]).logits, oracle["logits"]) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("oracle", ["qwen_v1"], indirect=True)
def test_beyond_the_trained_length(oracle, caplog, monkeypatch):
    """What training sees is plain attention at any length; generation was stretched, which is said."""
    monkeypatch.setattr("llmtune.utils.logging._said", set())
    monkeypatch.setattr(get_logger(), "propagate", True)
    found = oracle.fresh()(oracle["inputs_long"]).logits
    assert gap(found, oracle["logits_long_train"]) < CLOSE
    assert gap(found, oracle["logits_long"]) > 0.1
    assert "Beyond 48 tokens the original rescales its attention" in caplog.text
    assert "Loaded Qwen v1 onto Qwen2ForCausalLM" in caplog.text
