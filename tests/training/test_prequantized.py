"""LoRA beside weights that were saved quantised: GPTQ, AWQ, bitsandbytes; and int8 by torchao while loading."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.errors import CheckpointError, MissingPackageError, UsageError
from llmtune.inference.load import load_engine
from llmtune.models.prequantized import loads_with, saved_quantization_name
from llmtune.models.tiny import tiny_folder
from llmtune.training import build
from llmtune.training import stage as stage_module
from llmtune.tuners.tune import count_parameters, keep_unpacked

from ..quantised import dequantised, quantise_folder

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 6, "eval_steps": 6, "logging_steps": 1, "val_dataset_sample": 4, "learning_rate": 3e-3,
    "lora_target_modules": ["ALL"], "warmup_ratio": 0, "lr_scheduler_type": "constant",
}  # fmt: skip
ANSWERING: dict[str, Any] = {
    "eval_human": False, "max_new_tokens": 2, "show_dataset_sample": 1, "do_sample": False,
}  # fmt: skip
IDS = torch.arange(3, 40)[None]
PACKAGE = {"gptq": "gptqmodel", "awq": "gptqmodel", "bnb": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """kind -> a folder of the embedded model that was saved quantised."""
    made: dict[str, Path] = {}

    def find(kind: str) -> Path:
        method, bits = kind[:-1], int(kind[-1])
        pytest.importorskip(PACKAGE[method], reason=f"needs {PACKAGE[method]}")
        if kind not in made:
            place = tmp_path_factory.mktemp(kind) / "model"
            made[kind] = save_bnb(place) if method == "bnb" else quantise_folder(tiny_folder(), place, method, bits)
        return made[kind]

    return find


def save_bnb(place: Path) -> Path:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(
        tiny_folder(), quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    ).save_pretrained(place)
    for file in tiny_folder().glob("tokenizer*"):
        (place / file.name).write_bytes(file.read_bytes())
    return place


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


NOTES = {
    "gptq4": "28 of 29 linear layers in 4 bits (GPTQ, group size 32; kernel TorchLinear); not quantised: lm_head",
    "gptq8": "linear layers in 8 bits (GPTQ, group size 32",
    "awq4": "linear layers in 4 bits (AWQ, group size 32; kernel AwqTorchLinear)",
    "bnb4": "28 of 29 linear layers in 4 bits (nf4; compute dtype fp32); not quantised: lm_head",
}


@pytest.mark.medium
@pytest.mark.parametrize("kind", NOTES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_trains_and_answers_alike(tmp_path, folder, kind, dtype, trained):
    if dtype == "bf16" and kind not in ("gptq4", "awq4"):
        pytest.skip("fp32 shows it")
    options = RUN | {"model_id_or_path": str(folder(kind)), "dtype": dtype, "output_dir": str(tmp_path)}
    found = sft(SftArguments(**options))
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.2
    assert NOTES[kind] in (found.output_dir / "report.md").read_text(encoding="utf-8")
    (model,) = trained
    assert not [layer for layer in model.modules() if "dequantize_weight" in vars(layer)], "it waits for a compiler"
    assert {name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name} == set()
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {*(f"{name}_proj" for name in "qkvo"), "gate_proj", "up_proj", "down_proj"}
    assert count_parameters(model) == (108_544, 2_077_632)
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    if dtype == "fp32":
        keep_unpacked(engine.model)  # bitsandbytes would round to bf16
        with torch.no_grad():
            torch.testing.assert_close(engine.model(IDS).logits, model.eval()(IDS).logits, atol=1e-4, rtol=1e-4)
            with engine.model.disable_adapter():
                assert not torch.allclose(engine.model(IDS).logits, model(IDS).logits, atol=1e-2)
    assert len(infer(InferArguments(ckpt_dir=str(found.last_checkpoint), **ANSWERING))) == 1
    with pytest.raises(CheckpointError, match=r"was saved quantised.*before quantisation"):
        infer(InferArguments(ckpt_dir=str(found.last_checkpoint), merge_lora_and_save=True, **ANSWERING))


@pytest.mark.parametrize("kind", ["gptq4", "gptq8", "awq4"])
def test_packed_numbers_are_read_as_meant(folder, kind):
    place = folder(kind)
    engine = load_engine(InferArguments(model_type="llmtune-tiny", model_id_or_path=str(place), eval_human=True))
    whole = AutoModelForCausalLM.from_pretrained(tiny_folder()).eval()
    for name, value in whole.named_parameters():
        if ".layers." in name and name.endswith("_proj.weight"):
            value.data = dequantised(value.data, int(kind[-1]))
    with torch.no_grad():
        torch.testing.assert_close(engine.model(IDS).logits, whole(IDS).logits, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("kind", ["gptq4", "bnb4"])
def test_refused_before_weights_are_read(tmp_path, folder, kind):
    place = tmp_path / "model"
    place.mkdir()
    for file in folder(kind).iterdir():
        if file.suffix != ".safetensors":
            (place / file.name).write_bytes(file.read_bytes())
    options = RUN | {"model_id_or_path": str(place), "output_dir": str(tmp_path / "out")}
    with pytest.raises(UsageError, match=r"saved quantised \(.*4 bits\), and quantised weights cannot be trained"):
        sft(SftArguments(**(options | {"sft_type": "full"})))
    with pytest.raises(UsageError, match=r"--quantization_bit 8: .* already quantised"):
        sft(SftArguments(**(options | {"quantization_bit": 8})))
    with pytest.raises(UsageError, match=r"--quantization_bit 4: .* already quantised"):
        load_engine(InferArguments(model_type="llmtune-tiny", model_id_or_path=str(place), quantization_bit=4))
    assert not (tmp_path / "out").exists()


def test_a_missing_reader_of_quantised_weights_is_named(tmp_path, folder, monkeypatch):
    place = folder("awq4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options: dict[str, Any] = {"report_to": ["none"], "output_dir": str(tmp_path)}
    with pytest.raises(MissingPackageError, match=r"AWQ, 4 bits.*needs gptqmodel: pip install"):
        sft(SftArguments(**RUN, **options, model_id_or_path=str(place)))
    with pytest.raises(MissingPackageError, match=r"llmtune\[torchao\]"):
        sft(
            SftArguments(
                **RUN, quantization_bit=8, quant_method="torchao", report_to=["none"], output_dir=str(tmp_path)
            )
        )


def test_layers_that_were_left_whole(tmp_path):
    pytest.importorskip("gptqmodel")
    place = quantise_folder(tiny_folder(), tmp_path / "model", "awq", 4, whole=("down_proj",))
    engine = load_engine(InferArguments(model_type="llmtune-tiny", model_id_or_path=str(place), eval_human=True))
    layer = engine.model.model.layers[0].mlp
    assert isinstance(layer.down_proj, torch.nn.Linear)
    assert not isinstance(layer.up_proj, torch.nn.Linear)


def test_gptq_takes_a_backend_that_supports_training():
    saved = {"quant_method": "gptq", "bits": 4}
    assert loads_with(saved, on_gpu=True)["backend"] == "auto_trainable"
    assert loads_with(saved, on_gpu=False)["backend"] == "torch"
    assert loads_with({"quant_method": "fp8"}, on_gpu=True) == {"quant_method": "fp8"}
    assert saved_quantization_name({"load_in_4bit": True}) == "bitsandbytes, 4 bits"


@pytest.mark.medium
def test_torchao_int8_trains(tmp_path, trained):
    pytest.importorskip("torchao")
    options = {"quantization_bit": 8, "quant_method": "torchao"}
    found = sft(SftArguments(**RUN, **options, output_dir=str(tmp_path)))
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.2
    report = (found.output_dir / "report.md").read_text(encoding="utf-8")
    assert "28 of 29 linear layers in 8 bits (torchao, int8); not quantised: lm_head" in report
    (model,) = trained
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    weight = engine.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert type(weight).__module__.startswith("torchao")
    with torch.no_grad():
        torch.testing.assert_close(engine.model(IDS).logits, model.eval()(IDS).logits, atol=1e-4, rtol=1e-4)
    infer(InferArguments(ckpt_dir=str(found.last_checkpoint), merge_lora_and_save=True, **ANSWERING))
    merged = AutoModelForCausalLM.from_pretrained(f"{found.last_checkpoint}-merged")
    assert type(merged.model.layers[0].mlp.up_proj.weight) is torch.nn.Parameter


def test_torchao_has_8_bits(tmp_path):
    with pytest.raises(UsageError, match="--quantization_bit 8"):
        SftArguments(**RUN, quantization_bit=4, quant_method="torchao")
    with pytest.raises(UsageError, match="--quantization_bit 8"):
        InferArguments(model_type="llmtune-tiny", quantization_bit=4, quant_method="torchao")
    assert SftArguments(**RUN, quant_method="torchao").unused_flags() == ["--quant_method"]
