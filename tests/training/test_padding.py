"""`--padding_free auto`: padding is left out wherever a class keeps samples apart, and the losses stay the same."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from llmtune import SftArguments, sft
from llmtune.arguments.inheritance import resumed_arguments
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.cli.stages import COMMANDS
from llmtune.errors import UsageError
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.run.log import Decisions
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.training.attention import settle_attention
from llmtune.training.build import collator_of
from llmtune.training.padding import settle_padding

from ..samples.test_packing import TESTED, loss_and_gradients, samples, small

RUN: dict[str, Any] = {"model_type": "llmtune-tiny", "batch_size": 4}


def prepared(longest: int = 13, media: object = None) -> Any:
    tokens = SimpleNamespace(lengths=np.array([3, longest]))
    return SimpleNamespace(
        train_tokens=tokens,
        validation_tokens=None,
        template=SimpleNamespace(media=media),
        tokenizer=SimpleNamespace(pad_token_id=0),
    )


def settled(model: Any, **options: Any) -> tuple[SftArguments, Decisions]:
    args, decisions = SftArguments(**(RUN | options)), Decisions()
    settle_attention(model, args, decisions, torch.float32, None)
    return settle_padding(args, prepared(), model, decisions), decisions


@pytest.mark.parametrize("architecture", TESTED)
def test_every_class_learns_the_same_with_and_without_padding(architecture):
    model = small(architecture).train()
    rows = samples(9, 5, 13, 7)
    install_supervised_loss(model)
    loss, gradients = loss_and_gradients(model, PaddingCollator(0)(rows))
    args, decisions = settled(model)
    collator = collator_of(args, prepared(), model)
    (said,) = [line for line in decisions if line.startswith("Padding: ")]
    if args.padding_free == "false":
        assert isinstance(collator, PaddingCollator)
        assert said.startswith("Padding: kept; ")
        assert "would need a mask" in said
        return
    assert isinstance(collator, PackingCollator)
    assert said == "Padding: none, each batch is one sequence; varlen attention separates its samples"
    batch = collator(rows)
    assert batch["input_ids"].shape == (1, 9 + 5 + 13 + 7)
    ours, our_gradients = loss_and_gradients(model, batch)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert (our_gradients - gradients).abs().max() < 1e-5 * gradients.abs().max()


def test_few_classes_keep_their_padding():
    """Those whose attention adds something that neither varlen nor SDPA without a mask can: ALiBi, sinks, soft caps."""
    kept = {one for one in TESTED if settled(small(one))[0].padding_free == "false"}
    assert kept == {"BloomForCausalLM", "GptOssForCausalLM", "LlamaAlibiForCausalLM", "Gemma2ForCausalLM"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shift_attn": True}, "one sample per sequence"),
        ({"neftune_noise_alpha": 5.0}, "NEFTune"),
        ({"attn_impl": "sdpa"}, "--attn_impl sdpa would separate samples by a mask"),
        ({"padding_free": False}, None),
        ({"batch_size": 1}, None),
    ],
)
def test_flags_that_keep_the_padding_say_so(options, reason):
    args, decisions = settled(small("Qwen2ForCausalLM"), **options)
    assert args.padding_free == "false"
    said = [line for line in decisions if line.startswith("Padding: ")]
    assert len(said) == (reason is not None)
    assert all(reason in line for line in said)


def test_models_that_see_keep_their_padding():
    args, decisions = SftArguments(**RUN), Decisions()
    assert settle_padding(args, prepared(media=object()), small("Qwen2ForCausalLM"), decisions).padding_free == "false"
    assert "images" in decisions[-1]


@pytest.mark.parametrize("stage", STAGES)
def test_it_is_the_default_of_every_stage(stage):
    assert stage_arguments(stage).__dataclass_fields__["padding_free"].default == "auto"
    parse = COMMANDS[stage].ARGUMENTS
    assert parse.__dataclass_fields__["padding_free"].default == "auto"


@pytest.mark.medium
def test_a_run_equals_the_padded_one_and_says_which_way_it_took(tmp_path):
    run = RUN | {
        "dataset": ["tiny-qa#48"], "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_steps": 4,
        "logging_steps": 1, "eval_steps": 2, "val_dataset_sample": 8, "max_length": 192, "sft_type": "full",
        "only_save_model": False,
    }  # fmt: skip
    found = {}
    for value in ("auto", False):
        result = sft(SftArguments(**run, padding_free=value, output_dir=str(tmp_path / str(value))))
        lines = (result.output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        found[value] = [one[name] for one in records for name in ("loss", "eval_loss") if name in one]
        assert (result.metrics["padding_share"] == 0) == (value == "auto")
        saved = result.last_checkpoint / "sft_args.json"
        assert json.loads(saved.read_text())["padding_free"] == ("true" if value == "auto" else "false")
    assert found["auto"] == pytest.approx(found[False], rel=1e-6)


@pytest.mark.parametrize(
    ("given", "saved", "result", "changed"),
    [
        ({}, False, "false", {}),
        ({}, "true", "true", {}),
        ({"padding_free": "false"}, False, "false", {}),
        ({"padding_free": "auto"}, "true", "auto", {"padding_free": "true"}),
    ],
)
def test_a_checkpoint_that_knew_true_and_false_alone_is_resumed(tmp_path, given, saved, result, changed):
    found = resumed_arguments(SftArguments(**RUN, **given), {"padding_free": saved}, tmp_path)
    assert found.args.padding_free == result
    assert found.changed == changed


def test_it_has_three_values():
    with pytest.raises(UsageError, match="auto, true, false, not 'perhaps'"):
        SftArguments(**RUN, padding_free="perhaps")
