"""Packing and padding_free in whole runs: the same loss, evaluated, resumed, counted, reported, refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, ModelError, UsageError
from llmtune.samples.packing import PackedDataset
from llmtune.samples.prepare import prepare
from llmtune.samples.sampler import sample_order
from llmtune.training.build import collator_of

from ..tiny_vision import KEYS

# Flags


def test_packing_needs_a_length():
    with pytest.raises(UsageError, match="max_length"):
        SftArguments(model_type="llmtune-tiny", packing=True, max_length=-1)


def test_what_has_no_effect():
    args = SftArguments(model_type="llmtune-tiny", packing=True, padding_free=True, group_by_length=True)
    assert args.unused_flags() == ["--padding_free", "--group_by_length"]
    assert sample_order(args) == "random"
    alone = SftArguments(model_type="llmtune-tiny", group_by_length=True)
    assert not alone.unused_flags()
    assert sample_order(alone) == "by_length"


@pytest.mark.parametrize("flag", ["packing", "padding_free"])
def test_models_that_see_are_refused(flag, vision_folder):
    options: dict[str, Any] = {"model_type": KEYS["qwen2-vl"], "model_id_or_path": str(vision_folder("qwen2-vl"))}
    with pytest.raises(UsageError, match=rf"--{flag} true supports text models only"):
        prepare(SftArguments(dataset=["tiny-qa#8"], **options, **{flag: True}))


# Whole runs

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#48"], "gradient_accumulation_steps": 48, "learning_rate": 1e-3,
    "max_steps": 1, "logging_steps": 1, "eval_steps": 1, "dataset_test_ratio": 0.1, "val_dataset_sample": 8,
    "max_length": 192,
}  # fmt: skip


def run(folder: Path, **options: Any) -> Any:
    return sft(SftArguments(**(RUN | {"output_dir": str(folder)} | options)))


def logged(result: Any) -> dict[int, float]:
    lines = (result.output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {record["global_step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({"packing": True}, False),
        ({"packing": True, "batch_size": 3, "eval_batch_size": 2}, False),
        ({"packing": True, "batch_size": 3, "eval_batch_size": 2, "attn_impl": "sdpa"}, True),
        ({"packing": True, "attn_impl": "sdpa"}, False),
        ({"padding_free": True, "batch_size": 4}, False),
    ],
)
def test_a_step_with_all_rows_is_the_same(tmp_path, plain, options, padded):
    found = run(tmp_path, **options)
    assert logged(found)[1] == pytest.approx(logged(plain)[1], rel=1e-5)
    for name in ("eval_loss", "eval_token_acc"):
        assert found.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-5), "evaluated after the step"
    assert found.metrics["useful_tokens"] == plain.metrics["useful_tokens"]
    assert (found.metrics["padding_share"] > 0) == padded
    report = (found.output_dir / "report.md").read_text(encoding="utf-8")
    assert ("samples per pack" in report) == ("packing" in options)
    attention = "sdpa\n" if "attn_impl" in options else "varlen; packed sequences are attended to separately"
    assert f"Attention: {attention}" in report


def test_every_row_of_the_store_is_in_a_pack():
    prepared = prepare(SftArguments(**(RUN | {"packing": True})))
    packs, tokens = prepared.train_set, prepared.train_tokens
    assert isinstance(packs, PackedDataset)
    assert len(packs) < len(tokens) / 2
    assert sorted(row for index in range(len(packs)) for row in packs.rows_of(index)) == list(range(len(tokens)))
    for index in range(len(packs)):
        pack = packs[index]
        assert len(pack["input_ids"]) == packs.lengths[index] <= 192
        assert (pack["position_ids"] == 0).sum() == len(packs.rows_of(index))
        rows = [tokens[row]["input_ids"].tolist() for row in packs.rows_of(index)]
        assert pack["input_ids"].tolist() == list(itertools.chain(*rows))
    assert packs.lengths.sum() == tokens.lengths.sum()
    with pytest.raises(IndexError):
        packs[len(packs)]


@pytest.mark.medium
def test_check_and_sft_count_packs(tmp_path, capsys):
    options = {"gradient_accumulation_steps": 1, "max_steps": -1, "num_train_epochs": 2, "packing": True}
    args = SftArguments(**(RUN | options))
    num_packs = len(prepare(args).train_set)
    flags = [f"--{name}={value}" for name, value in (RUN | options).items() if name != "dataset"]
    assert main(["check", "--dataset", "tiny-qa#48", *flags]) == 0
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()}
    assert shown["packs"].startswith(f"{num_packs} of up to 192 tokens, ")
    assert shown["packs per step"] == "1 (1 x 1)"
    assert shown["total steps"] == str(2 * num_packs)
    found = run(tmp_path, **options, eval_strategy="no")
    assert max(logged(found)) == 2 * num_packs


def test_longest_packs_first_and_noise(tmp_path, capsys):
    options = {"gradient_accumulation_steps": 1, "max_steps": 2, "eval_strategy": "no"}
    run(tmp_path, packing=True, test_oom_error=True, neftune_noise_alpha=5.0, **options)
    assert "raise --neftune_noise_alpha" in capsys.readouterr().err


@pytest.mark.medium
def test_a_resumed_packed_run_equals_the_one_that_was_not_stopped(tmp_path):
    options = {
        "packing": True, "lora_dropout_p": 0.1, "max_steps": -1, "num_train_epochs": 3, "save_total_limit": -1,
        "gradient_accumulation_steps": 1, "batch_size": 2, "eval_steps": 4, "save_steps": 4,
    }  # fmt: skip
    whole = run(tmp_path / "whole", **options)
    steps = logged(whole)
    assert len(steps) > 12
    stopped = tmp_path / "stopped/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    (whole.output_dir / "checkpoint-8").rename(stopped / "checkpoint-8")
    from_there = {"resume_from_checkpoint": str(stopped / "checkpoint-8")}
    with pytest.raises(CheckpointError, match="--packing true, but this command has --packing false"):
        run(tmp_path / "stopped", **(options | {"packing": False}), **from_there)
    resumed = run(tmp_path / "stopped", **options, **from_there)
    assert logged(resumed) == {step: loss for step, loss in steps.items() if step > 8}


@pytest.mark.medium
@pytest.mark.parametrize("flag", ["packing", "padding_free"])
def test_packing_is_refused_if_packed_sequences_would_attend_to_each_other(tmp_path, monkeypatch, flag):
    monkeypatch.setattr("llmtune.models.packed_attention.keeps_rows_apart", lambda model: False)
    with pytest.raises(ModelError, match=rf"ForCausalLM does not separate packed sequences.*--{flag} false"):
        run(tmp_path, **{flag: True})
    (refused,) = tmp_path.glob("llmtune-tiny/*")
    assert {file.name for file in refused.iterdir()} == {"run.log", "run.yaml", "status.json"}, "and no checkpoint"
    run(tmp_path)


@pytest.mark.medium
@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_with_checkpointed_gradients(tmp_path, checkpointing):
    """The cache, which would let rows see each other, stays off in either case."""
    losses = [
        logged(run(tmp_path / str(packing), packing=packing, sft_type="full", gradient_checkpointing=checkpointing))[1]
        for packing in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "attention", "flat"),
    [
        ({"packing": True}, "sdpa", False),
        ({"packing": True}, "flash_attention_2", True),
        ({"packing": True}, "kernels-community/vllm-flash-attn3", True),
        ({"padding_free": True}, "sdpa", True),
        ({}, "flash_attention_2", None),
    ],
)
def test_flash_attention_takes_one_sequence_a_batch(options, attention, flat):
    args = SftArguments(**(RUN | {"dataset": ["tiny-qa#8"]} | options))
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation=attention))
    found = collator_of(args, prepare(args), model)
    assert getattr(found, "flat", None) is flat
