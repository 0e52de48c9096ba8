"""Optimizers: each name trains or is refused; bf16 weights without fp32 masters; states on the CPU; Muon."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from llmtune import SftArguments, sft
from llmtune.arguments.optimizers import OPTIMIZERS, ROUNDING
from llmtune.errors import MissingPackageError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.training.muon import MuonAndAdamW, matrices_of
from llmtune.training.offload import OffloadedAdamW
from llmtune.training.optimizers import seeded
from llmtune.training.resuming import follow_rates, rates_of
from llmtune.training.stage import Stage

from .. import prepared

STEPS, MIDDLE = 4, 2


def make_model(folder: Path, **options: Any) -> Path:
    """A Qwen2 with random weights and the tokenizer of llmtune-tiny."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4} | options,
        num_key_value_heads=2, vocab_size=2048, tie_word_embeddings=False, max_position_embeddings=512,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its matrices are just large enough to have states in 8 bits."""
    return make_model(tmp_path_factory.mktemp("small"))


def settings(small: Path, folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "model_type": "llmtune-tiny", "model_id_or_path": str(small), "dataset": ["tiny-qa#40"], "sft_type": "full",
        "batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "learning_rate": 1e-3,
        "neftune_noise_alpha": 5.0, "warmup_ratio": 0.0, "logging_steps": 1, "save_steps": MIDDLE,
        "eval_strategy": "no", "only_save_model": False, "report_to": ["none"], "output_dir": str(folder),
    } | options  # fmt: skip


def run(small: Path, folder: Path, **options: Any) -> Path:
    return sft(SftArguments(**settings(small, folder, **options))).output_dir


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return {line["global_step"]: line["loss"] for line in lines if "loss" in line}


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}/model.safetensors")


# Every name


@pytest.mark.medium
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_trains_or_is_refused_before_data_is_read(name, small, tmp_path, monkeypatch):
    read: list[bool] = []
    prepare = Stage.prepare
    monkeypatch.setattr(Stage, "prepare", lambda *given: [read.append(True), prepare(*given)][1])
    options = {"optim": name, "max_steps": 2, "gradient_accumulation_steps": 1, "save_steps": 2}
    refusal, folder = "", Path()
    try:
        folder = run(small, tmp_path, **options)
    except (UsageError, MissingPackageError) as err:
        refusal = str(err)
    if refusal:
        assert not read
        assert re.match(f"--optim {name} .*(pip install|does not work: |needs an NVIDIA or AMD GPU: )", refusal)
        return
    before, after = load_file(small / "model.safetensors"), weights(folder, 2)
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert len(changed) == len(before)
    assert all(value.isfinite().all() for value in after.values())
    assert all(0 < loss < 9 for loss in losses(folder).values())


# Stochastic rounding


def torchao(name: str, parameters: list[nn.Parameter], **options: Any) -> Any:
    optim = pytest.importorskip("torchao.optim")
    found = seeded(optim.AdamW4bit if "4bit" in name else optim.AdamW8bit)
    return found(parameters, **{"lr": 1e-4, "weight_decay": 0.0, "rounding_seed": 7} | options)  # type: ignore[arg-type]


def ones(shape: tuple[int, ...] = (64, 128)) -> nn.Parameter:
    found = nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    found.grad = torch.ones_like(found)
    return found


@pytest.mark.parametrize("name", ROUNDING)
def test_stochastic_rounding_keeps_updates_that_rounding_to_nearest_loses(name):
    """Steps of 1e-4 from 1.0, where the next bf16 numbers are 4e-3 and 8e-3 away."""
    rounded, lost = ones(), ones()
    for parameter, stochastic in ((rounded, True), (lost, False)):
        optimizer = torchao(name, [parameter], bf16_stochastic_round=stochastic)
        for _ in range(20):
            optimizer.step()
    assert torch.equal(lost.data, torch.ones_like(lost))
    assert float(rounded.detach().float().mean()) == pytest.approx(1 - 20e-4, rel=1e-4)


def test_rounding_depends_on_seed_and_step_alone():
    """Else replicas, whose generators dropout moves apart, would drift apart; and the run's generator stays."""
    made = [ones(), ones(), ones()]
    all_of_them = [
        torchao("8bit", [one], bf16_stochastic_round=True, rounding_seed=seed)
        for one, seed in zip(made, (7, 7, 8), strict=True)
    ]
    after = []
    for number, optimizer in enumerate(all_of_them):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(state, torch.get_rng_state())
        after.append(made[number].detach().clone())
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], after[2])
    made[0].data = torch.ones_like(made[0])
    all_of_them[0].step()
    assert not torch.equal(made[0], after[0]), "each step rounds by bits of its own"


def test_changed_rates_reach_an_optimizer_that_keeps_them_in_tensors():
    parameter = ones()
    optimizer = torchao("8bit", [parameter])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    follow_rates(optimizer, scheduler, [(0.25, 0.5)])
    optimizer.step()
    scheduler.step()
    assert rates_of(optimizer) == [(0.25, 0.5)]
    assert float(optimizer.param_groups[0]["lr"]) == 0.125


RESUMED = {
    "8bit": {"pure_bf16": True},
    "4bit": {"pure_bf16": True, "optim": "adamw_torch_4bit"},
    "offloaded": {"pure_bf16": True, "optim_offload": True},
    "muon": {"optim": "muon"},
}


@pytest.mark.medium
@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind, small, tmp_path):
    options = RESUMED[kind]
    whole = run(small, tmp_path / "whole", **options)
    stopped = tmp_path / "stopped" / "llmtune-tiny" / "v0-stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / f"checkpoint-{STEPS}")
    resumed = run(small, tmp_path / "stopped", resume_from_checkpoint=str(stopped / f"checkpoint-{MIDDLE}"))
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(resumed)[STEPS] == losses(whole)[STEPS]
    dtype = torch.bfloat16 if options.get("pure_bf16") else torch.float32
    assert {value.dtype for value in theirs.values()} == {dtype}


TOGETHER = """
import sys
import torch
import torch.distributed as dist
from llmtune.training.trainer import StageTrainer

train = StageTrainer.run

def compared(self, *given):
    found = train(self, *given)
    flat = torch.cat([one.detach().float().flatten() for one in self.model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    states = [torch.empty(5056, dtype=torch.uint8) for _ in range(2)]
    dist.all_gather(states, torch.get_rng_state())
    print("weights equal:", torch.equal(*both), "generators equal:", torch.equal(*states))
    return found

StageTrainer.run = compared
from llmtune.cli.main import main
sys.exit(main())
"""


@pytest.mark.slow
def test_replicas_stay_equal(small, tmp_path):
    """Two processes, whose batches differ in length: NEFTune's noise moves their generators apart."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    options = settings(small, tmp_path, pure_bf16=True, gradient_accumulation_steps=1)
    words = [f"--{name}={' '.join(value) if isinstance(value, list) else value}" for name, value in options.items()]
    said = prepared.start(script, "sft", *words, folder=tmp_path, nproc=2).check()
    assert said.count("weights equal: True generators equal: False") == 2


PURE_STEPS = 45


@pytest.mark.slow
def test_losses_are_those_of_fp32_masters_and_not_of_plain_bf16(tmp_path, monkeypatch):
    """At a learning rate whose updates bf16 weights lose. Over 200 steps and three seeds: benchmarks/optimizers.py."""
    adam = pytest.importorskip("torchao.optim.adam")
    model = make_model(tmp_path / "model", hidden_size=32, num_hidden_layers=1, initializer_range=0.1)
    common = {
        "max_steps": PURE_STEPS, "save_strategy": "no", "learning_rate": 5e-5, "gradient_accumulation_steps": 1,
        "neftune_noise_alpha": None, "dtype": "bf16", "logging_steps": PURE_STEPS // 3, "batch_size": 4,
    }  # fmt: skip
    masters = losses(run(model, tmp_path / "masters", **common))[PURE_STEPS]
    rounded = losses(run(model, tmp_path / "rounded", pure_bf16=True, **common))[PURE_STEPS]
    monkeypatch.setattr(adam, "_fp32_to_bf16_sr", lambda found: found.bfloat16())
    plain = losses(run(model, tmp_path / "plain", pure_bf16=True, **common))[PURE_STEPS]
    assert abs(rounded - masters) < 0.01
    assert plain - masters > 0.04


# States on the CPU


def linear(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(8, 16).to(dtype)


def gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for one in model.parameters():
        one.grad = torch.randn_like(one)


def test_offloaded_steps_equal_those_of_adamw():
    """In fp32 bit for bit; clipped gradients count as they are at the step."""
    ours, theirs = linear(), linear()
    made = OffloadedAdamW([{"params": [ours.weight]}, {"params": [ours.bias], "weight_decay": 0.0}], lr=0.01)
    reference = torch.optim.AdamW(
        [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}], lr=0.01, fused=True
    )
    for seed in range(5):
        for model, optimizer in ((ours, made), (theirs, reference)):
            gradients(model, seed)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_offloaded_masters_keep_what_bf16_weights_lose_also_when_loaded():
    model, masters = linear(torch.bfloat16), linear(torch.bfloat16).float()
    optimizer, reference = OffloadedAdamW(model.parameters(), lr=1e-5), torch.optim.AdamW(masters.parameters(), lr=1e-5)
    for seed in range(40):
        gradients(model, seed)
        for one, other in zip(model.parameters(), masters.parameters(), strict=True):
            other.grad = one.grad.float()  # type: ignore[union-attr]
        optimizer.step()
        reference.step()
        if seed == 20:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = OffloadedAdamW(model.parameters(), lr=1e-5)
            optimizer.load_state_dict(saved)
            assert {value.dtype for value in optimizer.state[model.weight].values()} == {torch.float32}
    assert torch.allclose(optimizer.state[model.weight]["master"], masters.weight, atol=1e-7, rtol=0)
    assert torch.equal(model.weight, masters.weight.bfloat16())


# Muon


class Layers(nn.Module):
    """A model of all that Muon leaves to AdamW, and one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(12, 8), nn.Linear(8, 16), nn.Linear(16, 12, bias=False)
        self.experts = nn.Parameter(torch.randn(2, 4, 4))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_muon_takes_the_matrices_of_the_layers():
    model = Layers()
    assert [id(one) for one in matrices_of(model)] == [id(model.layer.weight)]
    model.layer.weight.requires_grad_(False)
    with pytest.raises(UsageError, match="no matrix of the layers is trained"):
        matrices_of(model)


def made_of(model: Layers) -> MuonAndAdamW:
    decayed = [model.embedding.weight, model.layer.weight, model.head.weight, model.experts]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [model.layer.bias], "weight_decay": 0.0}]
    return MuonAndAdamW(groups, matrices=matrices_of(model), lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def scheduled(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def test_muon_and_adamw_step_as_each_alone_and_follow_one_schedule_also_when_loaded():
    torch.manual_seed(0)
    ours = Layers()
    theirs = copy.deepcopy(ours)
    muon = torch.optim.Muon([theirs.layer.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [theirs.embedding.weight, theirs.head.weight, theirs.experts]
    adamw = torch.optim.AdamW(
        [{"params": rest}, {"params": [theirs.layer.bias], "weight_decay": 0.0}], lr=0.02, betas=(0.9, 0.95),
        weight_decay=0.1,
    )  # fmt: skip
    optimizer = made_of(ours)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as accelerate does at the start
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step)) for one in (optimizer, muon, adamw)
    ]
    for seed in range(6):
        for model, optimizers in ((ours, [optimizer]), (theirs, [muon, adamw])):
            gradients(model, seed)
            for one in optimizers:
                one.step()
        for schedule in schedules:
            schedule.step()
        if seed == 3:
            saved, rates = copy.deepcopy(optimizer.state_dict()), schedules[0].state_dict()
            optimizer = made_of(ours)
            schedules[0] = scheduled(optimizer)
            optimizer.load_state_dict(saved)
            schedules[0].load_state_dict(rates)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
