"""Runs on a base in fp8: which layers it holds, losses beside those of fp32, resuming, adapters, refusals, the plan."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from llmtune import InferArguments, RmArguments, SftArguments, rm, sft
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, UsageError
from llmtune.inference.load import load_engine
from llmtune.models.fp8 import Fp8Linear
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.tiny import tiny_folder
from llmtune.planning.changes import possible_changes
from llmtune.planning.memory import Estimator
from llmtune.planning.plan import plan
from llmtune.planning.workload import Batch
from llmtune.run import training_arguments as run_arguments
from llmtune.run.resolved import Run
from llmtune.tuners.fp8_base import convert_base
from llmtune.tuners.tune import count_parameters, prepare_tuner
from llmtune.utils.files import read_json, write_json
from tests.accelerated import pretend

from ..launched import launch, records

INFO = MODEL_MAPPING["llmtune-tiny"]
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#200"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 30, "logging_steps": 1, "learning_rate": 1e-3, "lora_target_modules": ["ALL"], "warmup_ratio": 0,
    "eval_strategy": "no", "save_strategy": "no", "report_to": ["none"], "seed": 3, "fp8_base": True,
}  # fmt: skip
IDS = torch.arange(3, 40)[None]


def args_of(**options: Any) -> SftArguments:
    return SftArguments(**(RUN | options))


def run(folder: Path, **options: Any) -> Path:
    return sft(args_of(output_dir=str(folder), **options)).output_dir


def tuned(**options: Any) -> Any:
    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False, torch_dtype="fp32")
    torch.manual_seed(0)
    return prepare_tuner(model, args_of(**options), INFO, num_steps=10)


def in_fp8(model: Any) -> set[str]:
    return {name.removesuffix(".base_layer") for name, one in model.named_modules() if isinstance(one, Fp8Linear)}


@pytest.mark.parametrize("targets", [["ALL"], ["q_proj"]])
def test_the_frozen_layers_of_the_decoder_are_in_fp8_and_nothing_else(tmp_path, targets):
    model = tuned(lora_target_modules=targets, lora_rank=16)
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "reference", is_trainable=False)  # frozen, with sides that would fit
    count = count_parameters(model)
    assert convert_base(model) == "fp8 (e4m3, a scale per row) in 28 frozen linear layers of the decoder"
    names = {f"base_model.model.model.layers.{number}.{part}" for number in range(4) for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip
    assert in_fp8(model) == names
    assert count_parameters(model) == count
    model.load_adapter(str(tmp_path), "later", is_trainable=True)
    others = {value.dtype for name, value in model.named_parameters() if "proj" not in name or "lora_" in name}
    assert others == {torch.float32}, "of an adapter that is added to a base in fp8, too"


def test_layers_that_are_trained_or_do_not_fit_stay(capfd):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, intermediate_size=40, num_hidden_layers=2)).requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    assert convert_base(model) == (
        "fp8 (e4m3, a scale per row) in 7 frozen linear layers of the decoder; not gate_proj, up_proj, down_proj, "
        "whose sides are no multiples of 16"
    )
    assert not any("mlp" in name for name in in_fp8(model))
    assert len(in_fp8(model)) == 7
    assert not capfd.readouterr().err
    assert convert_base(nn.Sequential(nn.Linear(16, 16))) == ""
    assert "--fp8_base has no effect: Sequential" in capfd.readouterr().err


def test_routers_and_fused_experts_stay():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}
    experts = {"num_experts": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    config = Qwen2MoeConfig(**sizes, **experts, intermediate_size=64, num_hidden_layers=1, num_experts_per_tok=2)
    model = Qwen2MoeForCausalLM(config).requires_grad_(False)
    assert convert_base(model) == "fp8 (e4m3, a scale per row) in 7 frozen linear layers of the decoder"
    assert {name.rpartition(".")[0] for name in in_fp8(model)} == {
        "model.layers.0.self_attn",
        "model.layers.0.mlp.shared_expert",
    }


@pytest.mark.parametrize("sft_type", ["lora", "adalora", "vera", "ia3"])
def test_every_kind_of_adapter_learns_on_it(sft_type):
    """Its gradients are those on the unrounded base, up to the rounding."""
    gradients = []
    for convert in (False, True):
        model = tuned(sft_type=sft_type, lora_rank=16)
        if convert:
            assert convert_base(model)
        model.train()
        model(IDS, labels=IDS).loss.backward()
        found = [one.grad.flatten() for one in model.parameters() if one.requires_grad and one.grad is not None]
        gradients.append(torch.cat(found))
    plain, ours = gradients
    assert 0.005 < float((ours - plain).norm() / plain.norm()) < 0.15


@pytest.mark.slow
def test_losses_stay_beside_those_of_the_unrounded_base(tmp_path):
    """Over 30 steps, in which the loss falls from 7.8 to 5.8: 0.010 apart on average, 0.027 at most, of one step."""
    ours = records(folder := run(tmp_path / "a"))
    plain = records(run(tmp_path / "b", fp8_base=False))
    assert "Base: fp8 (e4m3, a scale per row) in 28 frozen" in (folder / "report.md").read_text(encoding="utf-8")
    apart = [abs(ours[step] - plain[step]) for step in plain]
    assert len(apart) == 30
    assert plain[30] < plain[1] - 1.5
    assert 0.001 < sum(apart) / 30 < 0.02
    assert max(apart) < 0.06


@pytest.mark.medium
def test_a_resumed_run_equals_the_uninterrupted_one_and_its_adapter_is_as_usual(tmp_path, capfd):
    options = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "save_total_limit": -1, "lora_dropout_p": 0.1,
        "gradient_checkpointing": "selective", "dtype": "bf16",
    }  # fmt: skip
    whole = run(tmp_path / "a", **options)
    expected = records(whole)
    shutil.copytree(whole / "checkpoint-3", tmp_path / "b/v0-x/checkpoint-3")
    resumed = sft(SftArguments(resume_from_checkpoint=str(tmp_path / "b/v0-x/checkpoint-3"))).output_dir
    assert records(resumed) == {step: loss for step, loss in expected.items() if step > 3}
    assert read_json(resumed / "sft_args.json")["fp8_base"] is True
    with pytest.raises(CheckpointError, match="--fp8_base true"):
        sft(SftArguments(resume_from_checkpoint=str(whole / "checkpoint-3"), fp8_base=False))
    saved = load_file(whole / "checkpoint-6/adapter_model.safetensors")
    assert len(saved) == 2 * 28
    assert all("lora_" in name and value.dtype is torch.float32 for name, value in saved.items())
    capfd.readouterr()
    engine = load_engine(InferArguments(ckpt_dir=str(whole / "checkpoint-6"), eval_human=True))
    assert "was trained on a base in fp8 (--fp8_base); here, its base is not rounded" in capfd.readouterr().err
    assert in_fp8(engine.model) == set()


@pytest.mark.medium
def test_the_scores_of_a_reward_model_are_not_compared_with_those_of_an_unrounded_base(tmp_path, capfd):
    flags = {"dataset": ["tiny-pairs#16"], "output_dir": str(tmp_path), "max_steps": 2, "save_strategy": "epoch"}
    assert rm(RmArguments(**(RUN | flags))).last_checkpoint is not None
    assert "are not read back from its files: they are computed on a base in fp8 here" in capfd.readouterr().err


def test_the_dry_run_names_it(capsys):
    assert main(["sft", "--model_type", "llmtune-tiny", "--fp8_base", "true", "--dry_run", "true"]) == 0
    assert "fp8, the frozen layers under the adapter" in capsys.readouterr().out


def test_ddp_does_not_send_the_weights_before_every_forward_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_arguments._fields(args_of(), tmp_path, False)["ddp_broadcast_buffers"] is False
    assert "ddp_broadcast_buffers" not in run_arguments._fields(args_of(fp8_base=False), tmp_path, False)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """DDP and DeepSpeed leave its numbers alone, and those of a row do not depend on the batch that it is in."""
    options = {"fp8_base": True, "max_steps": 4, "eval_strategy": "no", "save_strategy": "no"}
    one = records(launch(tmp_path / "one", gradient_accumulation_steps=4, **options))
    has_deepspeed = importlib.util.find_spec("deepspeed") is not None
    for strategy in ({}, *([{"deepspeed_config_path": "zero2"}] if has_deepspeed else [])):
        folder = tmp_path / f"two{len(strategy)}"
        two = records(launch(folder, nproc=2, gradient_accumulation_steps=2, **options, **strategy))
        assert two == pytest.approx(one, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sft_type": "full"}, "--fp8_base true rounds frozen weights, and --sft_type full trains them"),
        ({"quantization_bit": 4}, "--fp8_base true and --quantization_bit 4 both round the frozen weights"),
        ({"quantization_bit": 8, "quant_method": "torchao"}, "--quantization_bit 8 both round"),
        ({"use_dora": True}, "--use_dora and --lora_init pissa and olora need them unrounded"),
        ({"lora_init": "pissa"}, "--use_dora and --lora_init pissa and olora need them unrounded"),
        ({"fsdp": True}, "--fsdp shards the weights, which --fp8_base true needs unsharded"),
        ({"deepspeed_config_path": "zero3"}, "--deepspeed_config_path shards the weights, which --fp8_base true"),
    ],
)
def test_what_excludes_it_is_refused_with_the_arguments(options, said):
    with pytest.raises(UsageError) as refused:
        args_of(**options)
    (line,) = str(refused.value).splitlines()
    assert said in line
    assert "remove" in line
    dataclasses.replace(args_of(**options, fp8_base=False))
    args_of(deepspeed_config_path="zero2")


def test_weights_that_are_quantised_already_are_refused_before_rows_are_read(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    config = read_json(folder / "config.json")
    for method in ("gptq", "awq", "torchao", "bitsandbytes"):
        write_json(folder / "config.json", config | {"quantization_config": {"quant_method": method, "bits": 4}})
        with pytest.raises(UsageError, match=r"--fp8_base true: .* is already quantised .* Remove the flag"):
            Run.resolve(args_of(model_id_or_path=str(folder)))


def test_a_dora_adapter_is_refused_before_rows_are_read(tmp_path):
    tuned(use_dora=True, fp8_base=False).save_pretrained(tmp_path / "dora")
    with pytest.raises(UsageError, match=r"is DoRA.*remove --fp8_base"):
        Run.resolve(args_of(peft_path=str(tmp_path / "dora")))


def test_a_gpu_without_fp8_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    pretend(monkeypatch, "cuda", capability=(8, 0))
    with pytest.raises(UsageError, match=r"8\.9 or higher"):
        run(tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.medium
def test_the_plan_counts_both_copies_and_offers_what_can_be_had():
    args = args_of()
    estimator = Estimator(INFO, Path(tiny_folder()), torch.bfloat16, on_gpu=True)
    plain, ours = (estimator.estimate(one, Batch(2, 64, 100)) for one in (args_of(fp8_base=False), args))
    assert plain.weights < ours.weights < plain.weights * 1.03, "the scales are all there is besides"
    assert (ours.trainable, ours.parameters) == (plain.trainable, plain.parameters)
    assert (ours.gradients, ours.optimizer, ours.flops) == (plain.gradients, plain.optimizer, plain.flops)
    assert ours.activations == pytest.approx(plain.activations, rel=0.25)
    texts = [change.text for change in possible_changes(args, bf16=True)]
    assert "--quantization_bit 4 --fp8_base false" in texts
    assert not any("zero3" in text for text in texts)
    assert any("two fp8 copies" in note for note in plan(args, gpu="24GB").notes)
