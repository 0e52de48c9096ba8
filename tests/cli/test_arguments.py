"""Settings that would silently do nothing, or something else, are refused before any work, by every command alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from llmtune import InferArguments, SftArguments, sft
from llmtune.arguments.aliases import ALIASES, BY_FLAG, BY_US, OTHERS, not_by_train_args
from llmtune.arguments.fields import Problems
from llmtune.arguments.parser import parse
from llmtune.cli.main import main
from llmtune.distributed.deepspeed import deepspeed_file, packaged_configs, zero_stage
from llmtune.errors import LlmtuneError, UsageError
from llmtune.planning.workload import sharding_of
from llmtune.run.training_arguments import training_arguments

TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8"]
FLAGS = {field.name for field in dataclasses.fields(SftArguments) if field.init}
UNKNOWN_LAYERS: dict[str, list[str]] = {
    "targets": ["--lora_target_modules", "q_proj", "no_proj"],
    "a pattern": ["--lora_target_modules", r"model\.layers\.9\..*"],
    "modules to save": ["--modules_to_save", "embed_tokns"],
    "tokens and the whole embedding": ["--new_special_tokens", "<a>", "--modules_to_save", "embed_tokens", "lm_head"],
    "no adapter": ["--peft_path", "nowhere"],
}


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_encoding(monkeypatch):
    """The rows are not even looked at."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("rows were read first")

    monkeypatch.setattr("llmtune.samples.prepare.get_dataset", never)


@pytest.mark.parametrize("case", UNKNOWN_LAYERS)
@pytest.mark.parametrize("command", [["sft"], ["sft", "--dry_run", "true"], ["check"]], ids=" ".join)
def test_what_config_and_files_tell_is_told_first(no_encoding, command, case, capsys):
    assert main([*command, *TINY, *UNKNOWN_LAYERS[case]]) in (1, 2)
    said = capsys.readouterr().err
    assert UNKNOWN_LAYERS[case][0] in said
    assert "Traceback" not in said


def test_an_adapter_of_another_model_is_refused_before_rows_are_encoded(no_encoding, tmp_path, monkeypatch, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", n_layer=1, n_embd=16, n_head=2, vocab_size=64)
    other = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules=["c_attn"]))
    other.save_pretrained(tmp_path / "other")
    for command in (["sft"], ["check"]):
        assert main([*command, *TINY, "--peft_path", "other"]) == 1
        assert "its layers are missing there, e.g. transformer.h.0.attn.c_attn" in capsys.readouterr().err
    assert main(["sft", *TINY, "--peft_path", "other", "--sft_type", "ia3"]) == 2
    assert "use --sft_type lora" in capsys.readouterr().err


def test_a_regular_expression_chooses_layers(tmp_path):
    run = sft(SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa#8"], max_steps=1, batch_size=1, gradient_accumulation_steps=1,
        eval_strategy="no", report_to=["none"], lora_target_modules=[r"model\.layers\.(0|3)\.self_attn\.[qv]_proj"],
    ))  # fmt: skip
    told = json.loads((run.last_checkpoint / "adapter_config.json").read_text())
    assert sorted(told["target_modules"]) == sorted(
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 3) for name in "qv"
    )


EMPTY = {"output_dir": "output", "peft_path": None, "resume_from_checkpoint": None, "model_id_or_path": None}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_path_is_not_given(name):
    args = SftArguments(model_type="llmtune-tiny", **{name: ""})
    assert getattr(args, name) == EMPTY[name]
    assert name not in args.given


def test_every_text_field_takes_an_empty_text_for_nothing():
    """All that are optional texts, but the system prompt, which may be empty."""
    for field in dataclasses.fields(SftArguments):
        if field.init and field.default is None and "str" in str(field.type) and "Literal" not in str(field.type):
            found = getattr(SftArguments(**{"model_type": "llmtune-tiny", field.name: ""}), field.name)
            if field.name == "system":
                assert found == ""
            elif field.name not in ("template_type", "model_type"):  # which have a default of the model's
                assert found is None
    assert InferArguments(model_type="llmtune-tiny", ckpt_dir="").ckpt_dir is None


@pytest.mark.parametrize("value", ["", ",", " ", ", ,"])
@pytest.mark.parametrize("flag", ["--dataset", "--val_dataset"])
@pytest.mark.parametrize("command", ["sft", "check", "infer", "eval"])
def test_an_empty_dataset_is_not_the_default_one(command, flag, value, capsys):
    assert main([command, "--model_type", "llmtune-tiny", flag, value]) == 2
    assert f"{flag} is empty" in capsys.readouterr().err
    assert main([command, "--model_type", "llmtune-tiny", flag]) == 2
    assert f"{flag} is empty" in capsys.readouterr().err


def test_none_written_down_as_an_empty_list_is_none(tmp_path):
    """As sft_args.json has it, which `--config` takes; a flag of nothing is an empty variable of a script."""
    for text in ("val_dataset: []", '{"val_dataset": []}', "dataset: [tiny-qa]\nval_dataset:"):
        (tmp_path / "run.yaml").write_text(text)
        flags = ["--config", str(tmp_path / "run.yaml"), "--model_type", "llmtune-tiny"]
        assert parse(SftArguments, flags, command="sft").val_dataset == []
        with pytest.raises(UsageError, match="--val_dataset is empty"):
            parse(SftArguments, [*flags, "--val_dataset"], command="sft")


REFUSED: dict[str, list[Any]] = {
    "lora_alpha": [0, -1], "weight_decay": [float("nan"), -1.0, float("inf")], "max_grad_norm": [-1.0, float("nan")],
    "learning_rate": [float("nan"), 0.0, float("inf")], "warmup_ratio": [-0.1, 1.5, float("nan")],
    "seed": [-1, 2**32, 2**70], "dataset_seed": [-1, 2**63], "max_steps": [2**63, -2, 0],
    "dataloader_num_workers": [-1], "max_restarts": [-1], "no_repeat_ngram_size": [-1], "save_total_limit": [0, -2],
    "num_train_epochs": [float("nan"), float("inf")], "neftune_noise_alpha": [-1.0], "nproc": [-1],
    "temperature": [float("nan")], "dataset_test_ratio": [float("nan")], "lora_dropout_p": [float("nan"), 1.0],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_numbers_without_a_meaning(name, value):
    with pytest.raises(UsageError, match=f"--{name} "):
        SftArguments(model_type="llmtune-tiny", **{name: value})


FIRST = {
    1: "max_pixels batch_size eval_batch_size gradient_accumulation_steps eval_steps save_steps logging_steps "
    "lora_rank lora_alpha max_new_tokens num_beams",
    0: "seed dataset_seed freeze_layers top_k nproc weight_decay max_grad_norm neftune_noise_alpha temperature "
    "dataset_test_ratio lora_dropout_p warmup_ratio",
    -1: "train_dataset_sample val_dataset_sample",
}  # fmt: skip
"""The smallest value that a flag takes -> flags."""
ABOVE_0 = "num_train_epochs learning_rate lorap_lr_ratio top_p repetition_penalty"
UP_TO = {"top_p": 1, "warmup_ratio": 1, "seed": 2**32 - 1, "dataset_seed": 2**63 - 1, "max_length": 2**63 - 1}
BELOW = {"dataset_test_ratio": 1.0, "lora_dropout_p": 1.0}
HOLES = {"max_length": ([-1, 2], [-2, 0, 1]), "save_total_limit": ([-1, 1], [-2, 0])}
"""Flags whose -1 means something else: taken, refused."""


def test_ranges_end_where_they_are_said_to():
    taken = [(name, first) for first, names in FIRST.items() for name in names.split()]
    refused = [(name, first - 1) for name, first in taken]
    taken += [(name, 1e-9) for name in ABOVE_0.split()] + list(UP_TO.items())
    refused += [(name, 0.0) for name in ABOVE_0.split()] + [(name, last + 1) for name, last in UP_TO.items()]
    taken += [(name, 1 - 1e-9) for name in BELOW]
    refused += list(BELOW.items())
    for name, (good, bad) in HOLES.items():
        taken += [(name, value) for value in good]
        refused += [(name, value) for value in bad]
    for name, value in taken:
        assert getattr(SftArguments(model_type="llmtune-tiny", **{name: value}), name) == value
    for name, value in refused:
        with pytest.raises(UsageError, match=f"--{name} "):
            SftArguments(model_type="llmtune-tiny", **{name: value})
    for ratio in (0.0, 1.0):  # all that there is may be asked, and none of it be trained on
        assert InferArguments(model_type="llmtune-tiny", dataset_test_ratio=ratio, eval_human=True)


def test_no_float_takes_nan():
    floats = [field.name for field in dataclasses.fields(SftArguments) if "float" in str(field.type) and field.init]
    assert len(floats) > 10
    for name in floats:
        with pytest.raises(UsageError, match=f"--{name} "):
            SftArguments(model_type="llmtune-tiny", **{name: float("nan")})


def test_warmup_over_the_whole_run(tmp_path):
    arguments = training_arguments(
        SftArguments(model_type="llmtune-tiny", warmup_ratio=1.0), tmp_path, has_validation=False
    )
    assert arguments.get_warmup_steps(100) == 100


# --train_args


def test_each_field_of_trainingarguments_is_given_in_one_way():
    fields = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    for name in fields & FLAGS:
        assert not_by_train_args(name) == f"use --{name} instead.", name
    ours = FLAGS | set(ALIASES) | set(BY_FLAG) | BY_US | OTHERS
    assert fields <= ours, "a new field: say which way it is given"
    for name, flag in BY_FLAG.items():
        assert (flag or name) in FLAGS, name
    assert not BY_US & FLAGS


@pytest.mark.parametrize(
    "text",
    ["output_dir=x", "seed=1", "learning_rate=1", "max_steps=3", "per_device_train_batch_size=2", "fp16=true",
     "hub_token=x", "remove_unused_columns=true", "group_by_length=true"],
)  # fmt: skip
def test_a_field_with_a_flag_of_ours_is_refused(text):
    with pytest.raises(UsageError, match=f"--train_args {text.partition('=')[0]}: "):
        SftArguments(model_type="llmtune-tiny", train_args=[text])


def test_every_fault_of_train_args_is_named_at_once():
    texts = ["no equals", "seed=1", "adam_beta1=[1", "a b=1", "output_dir=x", "adam_beta2=0.9"]
    with pytest.raises(UsageError) as caught:
        SftArguments(model_type="llmtune-tiny", train_args=texts)
    said = [line.removeprefix("--train_args ")[:18] for line in str(caught.value).splitlines()]
    assert said == ["takes key=value, n", "seed: use --seed i", "adam_beta1: cannot", "takes key=value, n",
                    "output_dir: use --"]  # fmt: skip


FREE = {"adam_beta2": 0.9, "adam_epsilon": 1e-6, "ddp_timeout": 99, "logging_first_step": True,
        "torch_empty_cache_steps": 3, "eval_delay": 2, "dataloader_drop_last": True, "optim_args": "a=1"}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_the_other_fields_take_effect(tmp_path, name):
    args = SftArguments(model_type="llmtune-tiny", train_args=[f"{name}={FREE[name]}"])
    assert getattr(training_arguments(args, tmp_path, has_validation=True), name) == FREE[name]


def test_trainingarguments_own_names_say_how_they_are_given(capsys):
    for flag in ("save_on_each_node", "eval_delay", "ddp_bucket_cap_mb"):
        assert main(["sft", *TINY, f"--{flag}", "1"]) == 2
        assert f"--train_args {flag}=" in capsys.readouterr().err
    assert main(["sft", *TINY, "--label_smoothing_factor", "0.1"]) == 2
    assert "that --train_args does not take: llmtune sets it itself" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize("dash", "‐‑‒–—―−")
def test_a_dash_that_is_no_hyphen(dash, capsys):
    assert main(["sft", *TINY, f"{dash}max_steps", "5"]) == 2
    assert main(["sft", *TINY, f"{dash}{dash}max_steps", "5"]) == 2
    assert capsys.readouterr().err.count("its dash is a word processor's, not a hyphen. Type --max_steps.") == 2


def test_a_register_file_that_ends_the_program(tmp_path, capsys):
    Path("mine.py").write_text("import sys\nsys.exit(0)\n")
    assert main(["sft", *TINY, "--custom_register_path", "mine.py"]) == 1
    assert "mine.py raises SystemExit" in capsys.readouterr().err


def test_swapped_arguments_of_a_check_are_noticed():
    with pytest.raises(TypeError, match="takes a bool and a text"):
        Problems().need("--a must be 1 or more.", True)  # type: ignore[arg-type]


# DeepSpeed's own files


def written(name: str, stage: Any) -> str:
    Path(name).write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    return name


def test_the_stage_is_what_the_file_says():
    third, first = written("my_ds.json", 3), written("my_zero3_sweep.json", 1)
    assert (zero_stage(third), zero_stage(first), zero_stage(None)) == (3, 1, 0)
    assert {name: zero_stage(name) for name in packaged_configs()} == {
        "zero2": 2, "zero2_offload": 2, "zero3": 3, "zero3_offload": 3
    }  # fmt: skip
    with pytest.raises(UsageError, match="shards the weights"):
        SftArguments(model_type="llmtune-tiny", deepspeed_config_path=third, lora_init="pissa")
    args = SftArguments(model_type="llmtune-tiny", deepspeed_config_path=first, lora_init="pissa", nproc=2)
    assert (sharding_of(args).weights, sharding_of(args).optimizer) == (1, 2)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"zero_optimization": 3}', '{"zero_optimization": {"stage": "x"}}',
     '{"zero_optimization": {"stage": 7}}'],
)  # fmt: skip
def test_a_file_that_is_no_configuration(text):
    Path("ds.json").write_text(text)
    with pytest.raises(UsageError, match=r"--deepspeed_config_path ds\.json"):
        SftArguments(model_type="llmtune-tiny", deepspeed_config_path="ds.json")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("deepspeed_zero_stage2_config.json", "zero2"), ("ds_config_zero3.json", "zero3"), ("zero3", "zero3"),
     ("finetune/ds_config_zero2.json", "zero2"), ("ds_config/zero2_offload.json", "zero2_offload"),
     ("examples/deepspeed/ds_z3_offload_config.json", "zero3_offload"), ("my/zero3.json", None), ("zero9", None)],
)  # fmt: skip
def test_the_files_of_other_guides(given, expected):
    found = deepspeed_file(given)
    assert (found and found.stem) == expected


def test_a_usage_error_is_a_llmtune_error():
    assert issubclass(UsageError, LlmtuneError)
