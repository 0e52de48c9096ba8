"""`llmtune plan`: what it tells, for rows at hand and not, and advice that holds when it is followed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen3MoeConfig
from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

from llmtune import SftArguments
from llmtune.cli.main import main
from llmtune.cli.plan import _advice
from llmtune.errors import ModelError
from llmtune.models.devices import Gpu, find_gpu
from llmtune.models.flops import model_flops
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.tiny import tiny_folder
from llmtune.planning.changes import possible_changes
from llmtune.planning.memory import Estimator
from llmtune.planning.plan import make_plan, suggest
from llmtune.planning.trace import shapes
from llmtune.planning.workload import Batch, SampleLengths, Sharding, Workload
from llmtune.utils.files import write_json

INFO = MODEL_MAPPING["llmtune-tiny"]
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "tie_word_embeddings": False, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
}  # fmt: skip


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Qwen2.5-7B, and nothing else."""
    made = tmp_path_factory.mktemp("qwen2.5-7b-instruct")
    write_json(made / "config.json", QWEN_7B)
    return made


def args_of(folder: Path, **options: Any) -> SftArguments:
    found = {"model_type": "qwen2.5-7b-instruct", "model_id_or_path": str(folder), "dataset": ["tiny-qa"]}
    return SftArguments(**found | options)


def told(out: str) -> dict[str, str]:
    pairs = [line.strip().partition("  ") for line in out.splitlines()]
    return {name: text.strip() for name, _, text in pairs}


def test_plan_prints_parameters_memory_steps_and_fit(capsys):
    assert (
        main(["plan", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa", "--batch_size", "4", "--gpu", "T4"]) == 0
    )
    found = told(capsys.readouterr().out)
    assert found["trainable parameters"] == "28,672 of 1,997,760 (1.44%)"
    assert found["fits"] == "yes"
    assert int(found["steps"]) == 12
    assert "usable on a T4" in found["total"]
    assert "at 40% MFU on a T4" in found["FLOPs"]
    assert "fp16" in found["model"]
    assert found["largest batch"].startswith("1 x 376 tokens"), "four samples, without padding"


@pytest.mark.medium
def test_command_where_nothing_fits(qwen, capsys):
    argv = ["plan", "--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(qwen), "--dataset", "tiny-qa"]
    assert main([*argv, "--gpu", "16GB"]) == 0
    out = capsys.readouterr().out
    assert told(out)["fits"] == "NO"
    assert "--quantization_bit 4   (" in out
    assert "has no tokenizer" in out
    assert "smaller model or a larger GPU" in _advice([])
    assert main([*argv, "--gpu", "H1000"]) == 2


@pytest.mark.medium
def test_the_estimates_of_a_7b_model_match_published_figures(qwen):
    """Against what is known of the model: 7.616 G parameters, 14.2 GiB in bf16, 31 GF a token under LoRA at 4096."""
    args = args_of(qwen, gradient_checkpointing="none", lora_rank=16, lora_target_modules=["ALL"])
    found = Estimator(MODEL_MAPPING["qwen2.5-7b-instruct"], qwen, torch.bfloat16, True).estimate(
        args, Batch(1, 4096, 2400)
    )
    assert found.parameters - found.trainable == 7_615_616_512
    assert found.trainable == 40_370_176
    assert found.weights / 2**30 == pytest.approx(14.2, abs=0.2)
    assert found.optimizer == 2 * found.gradients == 8 * found.trainable
    all_trainable = found.flops.of(4096, 4096, 4096 * 4097 // 2) / 4096
    assert all_trainable / 1e9 == pytest.approx(31.0, rel=0.01)
    assert 5 < found.activations / 4096 / 2**20 < 10


@pytest.mark.slow
def test_suggested_flags_make_the_run_fit(tmp_path):
    """Each is taken at its word: planned anew with its flags, and without any one of them where there are several."""
    write_json(tmp_path / "config.json", QWEN_7B | {"num_hidden_layers": 2})
    args = args_of(tmp_path, sft_type="full", batch_size=2, gradient_checkpointing="none")
    for card in (find_gpu("27GB"), find_gpu("6GB"), find_gpu("4.5GB")):
        plan = make_plan(args, card)
        assert not plan.fits
        assert plan.suggestions
        for one in plan.suggestions:
            words = one.text.split()
            flags = {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}
            numbers = {name: int(value) if value.isdigit() else value for name, value in flags.items()}
            again = make_plan(
                args_of(tmp_path, **{"sft_type": "full", "batch_size": 2, "gradient_checkpointing": "none"} | numbers),
                card,
            )
            assert again.estimate.total == one.total <= plan.limit


def test_suggestions_are_pruned():
    """Only what is needed is advised, and a change that helps alone comes before a combination."""
    args = SftArguments(model_type="llmtune-tiny", batch_size=4, gradient_checkpointing="none")

    def total(one: Any) -> int:
        return one.batch_size * 10 + {"none": 20, "selective": 15, "full": 10}[one.gradient_checkpointing]

    assert suggest(args, total, 100)[0].total == 60 - 5
    assert suggest(args, total, 50)[0].text == "--gradient_checkpointing full"
    both = suggest(args, total, 27)
    assert [one.text for one in both] == [
        "--gradient_checkpointing full --batch_size 1 --gradient_accumulation_steps 64"
    ]
    assert both[0].total == 20
    assert suggest(args, total, 5) == []


@pytest.mark.slow
def test_a_7b_model_is_trained_in_full_on_one_80_gb_gpu(qwen):
    """By --pure_bf16: 14 GiB of weights, of gradients, and of states in 8 bits; and it is among the flags offered."""
    h100, options = find_gpu("80GB"), {"sft_type": "full", "max_length": 512, "gradient_checkpointing": "full"}
    masters = make_plan(args_of(qwen, **options), h100)
    assert not masters.fits
    assert [one.text for one in masters.suggestions] == [
        "--pure_bf16 true", "--optim paged_adamw_8bit", "--optim_offload true"
    ]  # fmt: skip
    pure = make_plan(args_of(qwen, pure_bf16=True, **options), h100)
    assert pure.fits
    parts = pure.estimate.weights, pure.estimate.gradients, pure.estimate.optimizer
    assert [size / 2**30 for size in parts] == pytest.approx([14.2, 14.2, 14.4], abs=0.1)
    assert pure.estimate.total == masters.suggestions[0].total


@pytest.mark.parametrize(
    ("options", "bf16", "offered"),
    [
        ({}, True, ["--optim adamw_bnb_8bit", "--pure_bf16 true", "--optim paged_adamw_8bit", "--optim_offload true",
                    "--pure_bf16 true --optim_offload true"]),
        ({}, False, ["--optim adamw_bnb_8bit", "--optim paged_adamw_8bit", "--optim_offload true"]),
        ({"optim": "adamw_torch"}, True, ["--optim adamw_bnb_8bit", "--pure_bf16 true --optim adamw_torch_8bit",
                                          "--optim paged_adamw_8bit", "--optim_offload true",
                                          "--pure_bf16 true --optim_offload true"]),
        ({"pure_bf16": True}, True, ["--optim_offload true"]),
        ({"optim_offload": True}, True, []), ({"optim": "sgd"}, True, []),
        ({"fsdp": True, "nproc": 2}, True, ["--optim adamw_bnb_8bit", "--optim paged_adamw_8bit"]),
    ],
)  # fmt: skip
def test_optimizers_that_are_offered(options, bf16, offered):
    args = SftArguments(**{"model_type": "llmtune-tiny", "sft_type": "full"} | options)
    found = [one for one in possible_changes(args, bf16=bf16) if one.kind == "optim"]
    assert [one.text for one in found] == offered
    for one in found:  # as typed, the flags set what the estimate was made with
        words = one.text.split()
        typed = {name[2:]: value == "true" or value for name, value in zip(words[::2], words[1::2], strict=True)}
        parsed = SftArguments(**{"model_type": "llmtune-tiny", "sft_type": "full"} | options | typed)
        assert {name: getattr(parsed, name) for name in one.values} == one.values


@pytest.mark.medium
def test_depth_is_extrapolated_exactly(tmp_path):
    config = Qwen2Config(hidden_size=64, intermediate_size=160, num_hidden_layers=14, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=512)  # fmt: skip
    config.save_pretrained(tmp_path)
    batch = Batch(2, 64, 50, padded=True)
    for options in ({"gradient_checkpointing": "selective"}, {"sft_type": "full"}):
        args = SftArguments(
            **{"model_type": "llmtune-tiny", "model_id_or_path": str(tmp_path), "gradient_checkpointing": "none"}
            | options
        )
        quick = Estimator(INFO, tmp_path, torch.float32, True).estimate(args, batch)
        from llmtune.planning import memory

        deep, memory.DEEP = memory.DEEP, 100
        try:
            whole = Estimator(INFO, tmp_path, torch.float32, True).estimate(args, batch)
        finally:
            memory.DEEP = deep
        assert quick.activations == pytest.approx(whole.activations, rel=0.01)
        assert quick.weights == whole.weights


@pytest.mark.medium
def test_quantised_weights_take_their_packed_size(qwen):
    args = args_of(qwen, quantization_bit=4, gradient_checkpointing="none")
    estimator = Estimator(MODEL_MAPPING["qwen2.5-7b-instruct"], qwen, torch.bfloat16, True)
    found = estimator.estimate(args, Batch(1, 512, 300))
    # 28 layers of 233.0 M numbers at 4.127 bits; embedding, head, norms and biases whole
    linear = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    whole = 2 * 152064 * 3584 * 2
    assert found.weights == pytest.approx(linear * 4.127 / 8 + whole, rel=0.01)
    args.quantization_bit = 8
    assert estimator.estimate(args, Batch(1, 512, 300)).weights == pytest.approx(linear + whole, rel=0.01)


@pytest.mark.medium
def test_sharding_divides_the_parts_it_names(qwen):
    args = args_of(qwen, sft_type="full", gradient_checkpointing="full")
    estimator = Estimator(MODEL_MAPPING["qwen2.5-7b-instruct"], qwen, torch.bfloat16, True)
    one, eight = (
        estimator.estimate(args, Batch(1, 512, 300), sharding) for sharding in (Sharding(), Sharding(8, 8, 8, 8))
    )
    assert eight.optimizer == one.optimizer // 8
    assert eight.gradients == one.gradients // 8
    assert one.weights // 8 < eight.weights < one.weights // 4
    # Autocast's copies of the weights in bf16 are held until backward; weights that come together in bf16 need none.
    assert eight.activations < one.activations / 3
    ddp = estimator.estimate(args, Batch(1, 512, 300), Sharding(8))
    assert ddp.gradients == 2 * one.gradients
    assert estimator.estimate(args, Batch(1, 512, 300), Sharding(2, 1, 2, 2, True)).optimizer == 0


@pytest.mark.medium
@pytest.mark.parametrize("gpus", [2, 3, 4])
def test_device_map_spreads_the_layers(qwen, gpus):
    """The weights on the fullest GPU against the map that transformers computes for `--device_map auto`."""
    args = args_of(qwen, gradient_checkpointing="full", device_map="auto")
    estimator = Estimator(MODEL_MAPPING["qwen2.5-7b-instruct"], qwen, torch.bfloat16, True)
    whole, spread = (estimator.estimate(args, Batch(1, 512, 300), Sharding(spread=count)) for count in (1, gpus))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(qwen), dtype=torch.bfloat16)
    memory = get_balanced_memory(model, dict.fromkeys(range(gpus), 80 * 2**30), {"Qwen2DecoderLayer"})
    placed = dict.fromkeys(memory, 0)
    for name, gpu in infer_auto_device_map(model, memory, {"Qwen2DecoderLayer"}).items():
        placed[gpu] += sum(one.numel() * 2 for one in model.get_submodule(name).parameters())
    assert spread.weights == pytest.approx(max(placed.values()), rel=0.01)
    assert 1 / gpus <= spread.weights / whole.weights < 1 / gpus + 0.1
    for part in ("optimizer", "gradients", "activations"):
        share = getattr(spread, part) / getattr(whole, part)
        assert share == pytest.approx(spread.weights / whole.weights, rel=1e-3)
    assert spread.logits == whole.logits


@pytest.mark.medium
def test_several_gpus_that_the_flags_leave_idle_are_noted(qwen, capsys):
    argv = ["plan", "--model_type", "qwen2.5-7b-instruct", "--model_id_or_path", str(qwen), "--dataset", "tiny-qa"]
    assert main([*argv, "--gpu", "2x16GB"]) == 0
    out = capsys.readouterr().out
    assert told(out)["fits"] == "NO"
    assert "Some of the 2 GPUs are idle: --nproc 2 or --device_map auto" in out
    assert main([*argv, "--gpu", "2x16GB", "--device_map", "auto"]) == 0
    out = capsys.readouterr().out
    assert told(out)["fits"] == "yes"
    assert "idle" not in out
    assert "memory of the fullest of 2 devices" in out
    assert main([*argv, "--gpu", "4 * 16GB", "--device_map", "sequential", "--nproc", "2"]) == 0
    out = capsys.readouterr().out
    assert "memory of the fullest of 4 devices" in out
    assert "sequential fills the first GPU first" in out
    assert main([*argv, "--gpu", "2x16GB", "--device_map", "auto", "--nproc", "2"]) == 2
    assert "each has 1. Give the number of GPUs, e.g. --gpu 4x24GB." in capsys.readouterr().err


def test_experts_count_by_share(tmp_path):
    config = Qwen3MoeConfig(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=512, num_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    args = SftArguments(model_type="llmtune-tiny", model_id_or_path=str(tmp_path), sft_type="full")
    flops = model_flops(shapes(args, INFO, tmp_path, torch.float32))
    attention = 2 * 64 * 64 + 2 * 64 * 32
    experts = 2 * 3 * 64 * 32
    # 6 operations a weight; the router is a linear layer or a bare weight, 64 x 8
    assert flops.per_token / 6 / 2 == pytest.approx(attention + experts, abs=64 * 8)
    found = Estimator(INFO, tmp_path, torch.float32, True).estimate(args, Batch(2, 64, 50))
    assert found.activations > 0


# The work of a run

ROWS = SampleLengths(np.array([10, 30, 20, 40, 100, 60]), 0.5)


def work(**options: Any) -> Workload:
    ranks = options.pop("ranks", 1)
    found = {"model_type": "llmtune-tiny", "gradient_accumulation_steps": 1, "batch_size": 2, "max_length": 64}
    return Workload.of(SftArguments(**found | options), ROWS, ranks)


def test_work_of_padded_rows():
    found = work(padding_free=False)
    assert found.batch == Batch(2, 64, 62, padded=True)
    assert found.steps == 3
    assert found.useful == 10 + 30 + 20 + 40 + 64 + 60
    assert found.useful <= found.computed <= 3 * 2 * 64
    assert work(padding_free=False, group_by_length=True).computed == 2 * 20 + 2 * 40 + 2 * 64
    assert work(num_train_epochs=2).useful == 2 * found.useful
    assert work(ranks=3).steps == 1


def test_work_of_packs_and_padding_free():
    assert work(packing=True).batch == Batch(2, 64, 64, packed=True)
    assert work(packing=True).steps == 2
    assert work(padding_free=True).batch == Batch(1, 124, 62, packed=True)
    assert work() == work(padding_free=True), "where the flags do not say that padding stays"
    assert work(padding_free=True).computed == work().useful
    assert work(batch_size=1).batch == Batch(1, 64, 32)
    assert work(batch_size=1).contexts == sum(n * (n + 1) // 2 for n in (10, 30, 20, 40, 64, 60))


def test_work_of_processes_that_share_their_batches(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = work(ranks=4, sequence_parallel_size=4)
    assert found.batch == Batch(1, 124 // 4, -(-62 // 4), packed=True)
    assert (found.steps, found.useful) == (work().steps, work().useful), "one group has the batches of one process"
    assert work(ranks=4, sequence_parallel_size=2).steps == work(ranks=2).steps


@pytest.mark.medium
def test_sharing_sequences_divides_activations_and_logits(qwen):
    args = args_of(qwen, gradient_checkpointing="none", packing=True, nproc=4)
    lengths = SampleLengths(np.full(64, 4096), 0.5)
    estimator = Estimator(MODEL_MAPPING["qwen2.5-7b-instruct"], qwen, torch.bfloat16, True)
    args.max_length = 4096
    one, four = (
        estimator.estimate(part, Workload.of(part, lengths, 4).batch, Sharding(4))
        for part in (args, dataclasses.replace(args, sequence_parallel_size=4))
    )
    assert four.weights == one.weights
    assert four.activations / one.activations == pytest.approx(1 / 4, rel=0.1)
    offered = [change.text for change in possible_changes(args, bf16=True)]
    assert "--sequence_parallel_size 4 --gradient_accumulation_steps 64" in offered
    assert not any("sequence_parallel" in one.text for one in possible_changes(args_of(qwen, nproc=1), bf16=True))


def test_heads_that_cannot_be_divided(qwen):
    args = args_of(qwen, nproc=8, sequence_parallel_size=8)
    with pytest.raises(
        ModelError, match=r"28 attention heads, with 4 of keys.*8 processes; 2 or 4 or 7 or 14 or 28 could"
    ):
        make_plan(args, find_gpu("80GB"))


def test_without_rows_samples_are_assumed_at_max_length():
    found = Workload.of(SftArguments(model_type="llmtune-tiny", batch_size=2, max_length=128), None)
    assert found.batch == Batch(1, 256, 154, packed=True)
    assert found.steps is None
    limited = Workload.of(SftArguments(model_type="llmtune-tiny", batch_size=2, max_length=128, max_steps=5), None)
    assert limited.steps == 5
    assert limited.useful == 5 * 16 * 2 * 128


@pytest.mark.medium
def test_disk_space_counts_the_checkpoints_kept():
    args = SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], eval_steps=10)
    plan = make_plan(args, Gpu("a GPU", 16))
    assert plan.disk == 3 * sum(plan.estimate.saved)
    assert plan.estimate.saved == (28_672 * 4, 28_672 * 8)
    args.save_strategy = "no"
    assert make_plan(args, Gpu("a GPU", 16)).disk == 0


def test_no_weights_are_read(tmp_path):
    """A folder with a broken weight file plans as one with a whole one."""
    for file in tiny_folder().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"broken")
    args = SftArguments(model_type="llmtune-tiny", model_id_or_path=str(tmp_path), dataset=["tiny-qa"])
    assert make_plan(args, Gpu("a GPU", 16)).estimate.parameters == 1_997_760
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"
