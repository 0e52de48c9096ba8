"""LoRA and full fine-tuning of mixtures of experts: experts adapted one by one, routers left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.inference.load import load_engine
from llmtune.models.tiny import tiny_folder
from llmtune.training import build
from llmtune.training import stage as stage_module
from llmtune.tuners.experts import expert_parameters
from llmtune.tuners.lora import linear_names

KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
}
RUN: dict[str, Any] = {
    "model_type": "auto", "template_type": "chatml", "dataset": ["tiny-qa#40"], "batch_size": 4,
    "gradient_accumulation_steps": 1, "max_steps": 8, "eval_steps": 8, "logging_steps": 1, "val_dataset_sample": 4,
    "learning_rate": 1e-2, "lora_target_modules": ["ALL"], "warmup_ratio": 0, "lr_scheduler_type": "constant",
}  # fmt: skip
IDS = torch.arange(3, 40)[None]


def make(kind: str, folder: Path, **changes: Any) -> Path:
    shutil.copytree(tiny_folder(), folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=256, num_experts_per_tok=2, pad_token_id=0, eos_token_id=2,
        **KINDS[kind], **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that runs build."""
    built: list[Any] = []
    own = build.build_model
    monkeypatch.setattr(stage_module, "build_model", lambda *args: built.append(own(*args)) or built[-1])
    return built


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "logging.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
def test_all_adapts_experts_and_leaves_routers(tmp_path, kind, trained, capfd):
    folder = make(kind, tmp_path / "model")
    found = sft(SftArguments(**RUN, model_id_or_path=str(folder), output_dir=str(tmp_path / "out")))
    said = capfd.readouterr().err
    assert "LoRA on experts: gate_up_proj, down_proj" in said or "LoRA on experts: down_proj, gate_up_proj" in said
    assert "routers are not adapted" in said
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.05  # the head is random, and frozen
    (model,) = trained
    adapted = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in adapted)
    assert len([name for name in adapted if "experts" in name and "shared" not in name]) == 2 * 2 * 2
    assert any("q_proj" in name for name in adapted)
    assert not [name for name in adapted if ".gate." in name or "shared_expert_gate" in name]
    if kind == "qwen2_moe":
        assert any("shared_expert.up_proj" in name for name in adapted)
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, value in model.get_base_model().state_dict().items():
        if name.endswith("mlp.gate.weight"):
            assert torch.equal(value, before[name])
        if "experts" in name and "lora_B" in name and "shared" not in name:
            assert all(part.abs().sum() > 0 for part in value.chunk(4, 1)), "every expert has learned"
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    with torch.no_grad():
        ours = model.eval()(IDS).logits
        torch.testing.assert_close(engine.model(IDS).logits, ours, atol=1e-5, rtol=1e-4)
    options = {"eval_human": False, "max_new_tokens": 2, "show_dataset_sample": 1, "do_sample": False}
    infer(InferArguments(ckpt_dir=str(found.last_checkpoint), merge_lora_and_save=True, **options))
    merged = AutoModelForCausalLM.from_pretrained(f"{found.last_checkpoint}-merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, ours, atol=1e-4, rtol=1e-3)


def test_names_of_fused_weights(tmp_path, trained):
    folder = make("mixtral", tmp_path / "model")
    options = RUN | {"model_id_or_path": str(folder), "output_dir": str(tmp_path / "out"), "max_steps": 1}
    sft(SftArguments(**(options | {"lora_target_modules": ["q_proj", "down_proj"]})))
    (model,) = trained
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert {name.rpartition("layers.0.")[2] for name in adapted if "layers.0." in name} == {
        "self_attn.q_proj",
        "mlp.experts",
    }
    assert model.peft_config["default"].target_parameters == {"mlp.experts.down_proj"}


def test_experts_are_not_adapted_with_flags_that_fused_weights_do_not_support(tmp_path, trained, capfd):
    folder = make("qwen3_moe", tmp_path / "model")
    options = RUN | {"model_id_or_path": str(folder), "output_dir": str(tmp_path / "out"), "max_steps": 1}
    sft(SftArguments(**(options | {"lora_dropout_p": 0.1})))
    assert "experts are not adapted, since their fused weights do not support --lora_dropout_p 0.1" in (
        capfd.readouterr().err
    )
    assert not [name for name, _ in trained[0].named_parameters() if "experts" in name and "lora_" in name]


def test_full_fine_tuning_of_experts_adds_no_load_balancing_loss(tmp_path, capfd):
    folder = make("qwen2_moe", tmp_path / "model", output_router_logits=True)
    options = RUN | {"model_id_or_path": str(folder), "output_dir": str(tmp_path / "out"), "sft_type": "full"}
    found = sft(SftArguments(**(options | {"lora_target_modules": [], "freeze_parameters": [r"mlp\.gate\."]})))
    assert "No load-balancing loss is added for MoE routers, though the checkpoint" in capfd.readouterr().err
    assert "no load-balancing loss is added" in (found.output_dir / "report.md").read_text()
    values = losses(found.output_dir)
    assert values[-1] < values[0]
    before, after = (
        AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (folder, found.last_checkpoint)
    )
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert {name for name in after if "mlp.gate." in name} <= same
    assert not [name for name in same if "experts" in name]


def test_dense_models_have_no_experts():
    model = AutoModelForCausalLM.from_pretrained(tiny_folder())
    assert expert_parameters(model) == []
    assert linear_names(model) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
