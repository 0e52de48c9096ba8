"""Runs on weights of 4 and 8 bits, on the CPU: what is quantised, what is trained, what can be read back."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.errors import CheckpointError, MissingPackageError
from llmtune.inference.load import load_engine
from llmtune.merging.merge import merge_and_save
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.quantization import quantization_options
from llmtune.models.tiny import tiny_folder
from llmtune.training import build
from llmtune.training import stage as stage_module
from llmtune.tuners.targets import part_of
from llmtune.tuners.tune import count_parameters, keep_unpacked, prepare_quantized

from ..tiny_vision import KEYS

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")

QUICK: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 4, "eval_steps": 2, "logging_steps": 1, "val_dataset_sample": 4, "learning_rate": 1e-2,
    "lora_target_modules": ["ALL"], "warmup_ratio": 0, "lr_scheduler_type": "constant", "seed": 3,
}  # fmt: skip
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.arange(3, 40)[None]


def quick(folder: Path, **options: Any) -> Any:
    return sft(SftArguments(**(QUICK | {"output_dir": str(folder)} | options)))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logging.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run) if "loss" in record]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that runs build."""
    built: list[Any] = []
    own = build.build_model
    monkeypatch.setattr(stage_module, "build_model", lambda *args: built.append(own(*args)) or built[-1])
    return built


def kinds(model: Any) -> dict[str, str]:
    """Class of each linear layer of the base, by the last part of its name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lora_" not in name:
            found[name.removesuffix(".base_layer").rsplit(".", 1)[-1]] = type(module).__name__
    return found


MODES = {
    "nf4": {"quantization_bit": 4},
    "fp4": {"quantization_bit": 4, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
    "bf16": {"quantization_bit": 4, "dtype": "bf16", "gradient_checkpointing": True},
    "mixed": {"quantization_bit": 4, "bnb_4bit_comp_dtype": "bf16"},
    "int8": {"quantization_bit": 8},
}


@pytest.mark.medium
@pytest.mark.parametrize("mode", MODES)
def test_trains_and_answers_alike(tmp_path, trained, mode, caplog):
    options = MODES[mode]
    found = quick(tmp_path, **options)
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.2
    assert "MatMul8bitLt" not in caplog.text, "bitsandbytes says it at every product"
    (model,) = trained
    eight = mode == "int8"
    expected = dict.fromkeys(LAYERS, "Linear8bitLt" if eight else "Linear4bit")
    assert kinds(model) == expected | {"lm_head": "Linear"}
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    report = (found.output_dir / "report.md").read_text(encoding="utf-8")
    assert f"linear layers in {8 if eight else 4} bits" in report
    if not eight:
        layer = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
        state = layer.weight.quant_state
        assert state.quant_type == options.get("bnb_4bit_quant_type", "nf4")
        assert state.nested == options.get("bnb_4bit_use_double_quant", True)
        dtypes = {"bf16": torch.bfloat16, "mixed": torch.bfloat16}
        assert layer.compute_dtype == dtypes.get(mode, torch.float32)
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    assert kinds(engine.model) == kinds(model)
    keep_unpacked(engine.model)
    if mode != "bf16":  # there the norms of training are in fp32, and those of inference are not
        with torch.no_grad():
            torch.testing.assert_close(engine.model(IDS).logits, model.eval()(IDS).logits, atol=1e-5, rtol=1e-5)
            with engine.model.disable_adapter():
                assert not torch.allclose(engine.model(IDS).logits, model(IDS).logits, atol=1e-2)


def test_norms_are_fp32_and_the_head_is_not():
    options = quantization_options(
        SftArguments(**(QUICK | MODES["bf16"])), MODEL_MAPPING["llmtune-tiny"], torch.bfloat16, "cpu"
    )
    model, _ = get_model_tokenizer("llmtune-tiny", torch_dtype="bf16", **options)
    keep_unpacked(model)
    before = model(IDS).logits
    prepare_quantized(model)
    dtypes = {name: value.dtype for name, value in model.named_parameters() if value.is_floating_point()}
    assert {dtype for name, dtype in dtypes.items() if "norm" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "norm" not in name} == {torch.bfloat16}
    after = model(IDS).logits
    assert after.dtype is torch.bfloat16
    torch.testing.assert_close(after, before, atol=0.3, rtol=0.1)


@pytest.mark.medium
def test_the_base_is_smaller_and_counted_in_full(tmp_path, trained):
    quick(tmp_path / "4", quantization_bit=4, max_steps=1)
    quick(tmp_path / "0", max_steps=1)
    four, whole = trained
    assert four.get_memory_footprint() < 0.8 * whole.get_memory_footprint()
    assert count_parameters(four) == count_parameters(whole)


@pytest.mark.medium
def test_merging_goes_into_whole_weights(tmp_path):
    found = quick(tmp_path, quantization_bit=4)
    checkpoint = found.last_checkpoint
    options = {"eval_human": False, "max_new_tokens": 2, "show_dataset_sample": 1, "do_sample": False}
    infer(InferArguments(ckpt_dir=str(checkpoint), merge_lora_and_save=True, **options))
    merged = AutoModelForCausalLM.from_pretrained(str(checkpoint.with_name("checkpoint-4-merged")))
    assert set(kinds(merged).values()) == {"Linear"}
    whole = load_engine(InferArguments(ckpt_dir=str(checkpoint), eval_human=True, load_args_from_ckpt_dir=False,
                                       model_type="llmtune-tiny")).model  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, whole(IDS).logits, atol=1e-4, rtol=1e-4)
    quantised = load_engine(InferArguments(ckpt_dir=str(checkpoint), eval_human=True))
    with pytest.raises(CheckpointError, match="--quantization_bit 0"):
        merge_and_save(quantised.model, quantised.tokenizer, checkpoint, tmp_path / "merged")


@pytest.mark.medium
def test_qlora_resumes_to_the_same_losses(tmp_path):
    options = {"quantization_bit": 4, "save_total_limit": -1}
    found = quick(tmp_path / "a", **options)
    middle = found.output_dir / "checkpoint-2"
    stopped = tmp_path / "b/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    middle.rename(stopped / "checkpoint-2")
    resumed = quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), **options)
    assert losses(resumed.output_dir) == losses(found.output_dir)[2:]
    with pytest.raises(CheckpointError, match=r"trained with --quantization_bit 4, .* has --quantization_bit 8"):
        quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), quantization_bit=8)


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "adamw_8bit"])
def test_bitsandbytes_optimizers_train_and_warn_that_a_cpu_does_not_page(tmp_path, optim, capfd):
    found = quick(tmp_path, optim=optim)
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.2
    assert ("does not page on a CPU" in capfd.readouterr().err) == optim.startswith("paged")


def test_modules_that_an_entry_leaves_whole():
    info = ModelInfo(model_id_or_path=str(tiny_folder()), skip_quantization=("down_proj",))
    args = SftArguments(**(QUICK | {"quantization_bit": 4}))
    model = AutoModelForCausalLM.from_pretrained(
        str(tiny_folder()), **quantization_options(args, info, torch.float32, "cpu")
    )
    assert {name for name, kind in kinds(model).items() if kind == "Linear"} == {"down_proj", "lm_head"}


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen3-vl", "llava"])
def test_eyes_are_left_whole(kind, vision_folder):
    info = MODEL_MAPPING[KEYS[kind]]
    options = quantization_options(SftArguments(**(QUICK | {"quantization_bit": 4})), info, torch.float32, "cpu")
    folder = str(vision_folder(kind))
    model, _ = get_model_tokenizer(KEYS[kind], model_id_or_path=folder, torch_dtype="fp32", **options)
    linear = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    eyes = {name: linear.pop(name) for name in [*linear] if part_of(name) != "language" or "lm_head" in name}
    assert len(eyes) > 4
    assert set(eyes.values()) == {"Linear"}
    assert set(linear.values()) == {"Linear4bit"}


def test_missing_bitsandbytes_is_named_with_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for options in ({"quantization_bit": 4}, {"optim": "paged_adamw_8bit"}):
        with pytest.raises(MissingPackageError, match=r"pip install 'llmtune\[quant\]'"):
            quick(tmp_path, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingPackageError, match="bitsandbytes"):
        load_engine(InferArguments(model_type="llmtune-tiny", quantization_bit=8))


def test_flags_of_4_bits_elsewhere():
    args = SftArguments(**(QUICK | {"quantization_bit": 8, "bnb_4bit_quant_type": "fp4"}))
    assert args.unused_flags() == ["--bnb_4bit_quant_type"]
    assert InferArguments(model_type="llmtune-tiny", bnb_4bit_quant_type="fp4").unused == ["--bnb_4bit_quant_type"]
    four = InferArguments(model_type="llmtune-tiny", quantization_bit=4, bnb_4bit_quant_type="fp4")
    assert not four.unused
