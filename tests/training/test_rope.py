"""Stretched rotary positions: written into the configuration, rotated by, saved, and served alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.errors import CheckpointError, ModelError, UsageError
from llmtune.inference.load import load_engine
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.rope import rope_factor, scale_rope
from llmtune.models.tiny import tiny_folder

TRAINED = 2048
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#16"], "batch_size": 2, "gradient_accumulation_steps": 1,
    "max_steps": 2, "eval_steps": 2, "logging_steps": 1, "val_dataset_sample": 2, "learning_rate": 1e-3,
    "warmup_ratio": 0, "lora_target_modules": ["ALL"], "max_length": 3 * TRAINED,
}  # fmt: skip
KINDS = ("linear", "dynamic", "yarn")


def frequencies(kind: str, factor: float, length: int) -> torch.Tensor:
    """Written down from the papers, for heads of the embedded model."""
    config = AutoConfig.from_pretrained(tiny_folder())
    width, base = config.hidden_size // config.num_attention_heads, config.rope_parameters["rope_theta"]
    places = torch.arange(0, width, 2) / width
    if kind == "linear":
        return base**-places / factor
    if kind == "dynamic":
        grown = base * (factor * max(length, TRAINED) / TRAINED - factor + 1) ** (width / (width - 2))
        return grown**-places
    low, high = (width * math.log(TRAINED / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
    stays = 1 - ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)
    return base**-places * (stays + (1 - stays) / factor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [100, 3 * TRAINED])
def test_positions_are_rotated_as_the_configuration_says(kind, length):
    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False, rope=(kind, 3.0))
    positions = torch.arange(length)[None]
    cosine, sine = model.model.rotary_emb(torch.zeros(1), positions)
    scale = 0.1 * math.log(3.0) + 1 if kind == "yarn" else 1.0
    angles = positions[0, :, None] * frequencies(kind, 3.0, length)
    width = angles.shape[1]
    torch.testing.assert_close(cosine[0, :, :width], angles.cos() * scale, atol=2e-3, rtol=0)
    torch.testing.assert_close(sine[0, :, :width], angles.sin() * scale, atol=2e-3, rtol=0)
    plain, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
    same = torch.allclose(plain.model.rotary_emb(torch.zeros(1), positions)[0], cosine, atol=1e-3)
    assert same == (kind == "dynamic" and length <= TRAINED)


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_rope_scaling_is_saved_and_applied_at_inference(tmp_path, kind, sft_type):
    found = sft(SftArguments(**RUN, output_dir=str(tmp_path), rope_scaling=kind, sft_type=sft_type))
    assert f"RoPE scaling: {kind}, factor 3\n" in (found.output_dir / "report.md").read_text()
    checkpoint = found.last_checkpoint
    saved = json.loads((checkpoint / "sft_args.json").read_text())
    assert (saved["rope_scaling"], saved["rope_factor"]) == (kind, 3.0)
    served = load_engine(InferArguments(ckpt_dir=str(checkpoint), eval_human=True)).model
    rope = served.config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == (kind, 3.0)
    assert served.config.max_position_embeddings == (TRAINED if kind == "dynamic" else 3 * TRAINED)
    folder = checkpoint
    if sft_type == "lora":
        options = {"eval_human": False, "max_new_tokens": 2, "show_dataset_sample": 1, "do_sample": False}
        infer(InferArguments(ckpt_dir=str(checkpoint), merge_lora_and_save=True, **options))
        folder = checkpoint.with_name(f"{checkpoint.name}-merged")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(3, served.config.vocab_size, (1, TRAINED + 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (model(ids, logits_to_keep=8).logits for model in (served, plain.eval()))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        base, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
        assert (base.eval()(ids, logits_to_keep=8).logits - ours).abs().max() > 1e-2
    load_engine(InferArguments(ckpt_dir=str(folder), eval_human=True))  # not stretched twice


@pytest.mark.medium
def test_resuming_needs_the_same(tmp_path):
    options = RUN | {"output_dir": str(tmp_path), "max_steps": 1, "save_steps": 1}
    found = sft(SftArguments(**options, rope_scaling="linear"))
    with pytest.raises(CheckpointError, match=r"was trained with --rope_scaling linear, .* has --rope_scaling yarn"):
        sft(SftArguments(**options, resume_from_checkpoint=str(found.last_checkpoint), rope_scaling="yarn"))
    more = options | {"max_steps": 2, "resume_from_checkpoint": str(found.last_checkpoint)}
    saved = [json.loads((one / "sft_args.json").read_text())["rope_factor"]
             for one in (found.last_checkpoint, sft(SftArguments(**more)).last_checkpoint)]  # fmt: skip
    assert saved[0] == saved[1] > 1


def test_the_rope_factor_reaches_max_length_rounded_up():
    config = AutoConfig.from_pretrained(tiny_folder())
    assert rope_factor(config, "linear", None, 2 * TRAINED) == 2.0
    assert rope_factor(config, "linear", None, 2 * TRAINED + 1) == 3.0
    assert rope_factor(config, "linear", 1.5, 100) == 1.5
    for length in (TRAINED, -1):
        with pytest.raises(UsageError, match=r"beyond the 2,048 tokens.*--rope_factor"):
            rope_factor(config, "linear", None, length)
    with pytest.raises(UsageError, match="beyond the 2,048 tokens"):
        sft(SftArguments(**(RUN | {"max_length": 512}), rope_scaling="yarn"))
    scale_rope(config, "yarn", 2.0)
    with pytest.raises(ModelError, match=r"RoPE scaling already \(yarn, for 4,096 tokens\)"):
        rope_factor(config, "linear", None, 8192)
    with pytest.raises(ModelError, match="gpt2 does not have"):
        rope_factor(AutoConfig.for_model("gpt2"), "linear", None, 8192)


def test_layers_of_sliding_windows_stay():
    config = AutoConfig.for_model("gemma3_text")
    before = dict(config.rope_parameters["sliding_attention"])
    scale_rope(config, "linear", 2.0)
    assert config.rope_parameters["sliding_attention"] == before
    assert config.rope_parameters["full_attention"]["factor"] == 2.0


def test_rope_scaling_works_on_ported_checkpoints(assets: Path):
    folder = assets / "oracles" / "qwen_v1"
    plain, _ = get_model_tokenizer(
        "qwen-7b-chat", model_id_or_path=str(folder), load_tokenizer=False, torch_dtype="fp32"
    )
    options = {"load_tokenizer": False, "torch_dtype": "fp32", "rope": ("linear", 4.0)}
    model, _ = get_model_tokenizer("qwen-7b-chat", model_id_or_path=str(folder), **options)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq * 4, plain.model.rotary_emb.inv_freq)


def test_answering_needs_a_factor():
    with pytest.raises(UsageError, match="--rope_factor"):
        InferArguments(model_type="llmtune-tiny", rope_scaling="yarn")
    engine = load_engine(InferArguments(model_type="llmtune-tiny", rope_scaling="yarn", rope_factor=2.0))
    assert engine.model.config.rope_parameters["rope_type"] == "yarn"
