"""Flags, YAML and Python are three spellings of one object."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.export import ExportArguments, MergeArguments
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.parser import build_parser, field_help, parse
from llmtune.arguments.stage import SftArguments
from llmtune.errors import UsageError

from .flags import changed, sft

# Flags


def test_no_flags_give_the_defaults():
    assert sft() == SftArguments(model_type="llmtune-tiny")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--batch_size 4", {"batch_size": 4, "eval_batch_size": 4}),
        ("--batch-size=4", {"batch_size": 4, "eval_batch_size": 4}),
        ("--max_length=-1", {"max_length": -1}),
        ("--max_length -1", {"max_length": -1}),
        ("--learning_rate 1e-5", {"learning_rate": 1e-5}),
        ("--num_train_epochs 3", {"num_train_epochs": 3.0}),
        ("--strict", {"strict": True}),
        ("--strict true", {"strict": True}),
        ("--strict=Yes", {"strict": True}),
        ("--do_sample false", {"do_sample": False}),
        ("--do_sample 0", {"do_sample": False}),
        ("--no_do_sample", {"do_sample": False}),
        ("--no-do-sample", {"do_sample": False}),
        ("--no_repeat_ngram_size 3", {"no_repeat_ngram_size": 3}),
        ("--use_flash_attn off", {"use_flash_attn": False}),
        ("--sft_type full", {"sft_type": "full", "learning_rate": 2e-5, "only_save_model": True}),
        ("--sft_type full --fsdp", {"sft_type": "full", "learning_rate": 2e-5, "fsdp": True}),
        ("--truncation_strategy delete", {"truncation_strategy": "delete"}),
        ("--dataset a b#10", {"dataset": ["a", "b#10"]}),
        ("--dataset a,b --val_dataset c", {"dataset": ["a", "b"], "val_dataset": ["c"]}),
        ("--dataset=a,b", {"dataset": ["a", "b"]}),
        ("--dataset a, b", {"dataset": ["a", "b"]}),
        ("--dataset a --dataset b", {"dataset": ["b"]}),
        ("--model_name 小黄 -x", {"model_name": ["小黄", "-x"]}),
        ("--seed 1 --seed 2", {"seed": 2}),
        ("--system=--hello", {"system": "--hello"}),
        ("--system=", {"system": ""}),
        (
            "--train_args adam_beta1=0.8,x --train_args project=b=c",
            {"train_args": ["adam_beta1=0.8,x", "project=b=c"]},
        ),
        ("--report_to none", {"report_to": ["none"]}),
        ("--debug --seed 3", {"seed": 3}),
    ],
)
def test_flags_set_the_fields_they_name(argv, expected):
    if expected.get("system") == "":
        assert sft(*argv.split()).system == ""
    assert changed(*argv.split()) == expected


def test_comma_inside_the_path_of_a_file(tmp_path):
    file = tmp_path / "a,b.jsonl"
    file.touch()
    assert sft("--dataset", f"{file}", "c,d").dataset == [str(file), "c", "d"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--batchsize 2", r"Unknown flag --batchsize\. Did you mean --batch_size .*llmtune sft --help"),
        ("--batch 2", "Unknown flag --batch"),
        ("--quux", r"Unknown flag --quux\. See"),
        ("--seed x", r"^--seed: invalid int value: 'x'\.$"),
        ("--seed", r"^--seed: expected one argument\.$"),
        ("--seed 1 2", "--seed takes one value, not 2: 1 2"),
        ("--strict maybe", "--strict: expected true or false, not 'maybe'"),
        ("--loss_on some", r"--loss_on: invalid choice: 'some' \(choose from '?auto"),
        ("--quantization_bit 5", "--quantization_bit: invalid choice: 5"),
        ("--no_seed", "--seed: invalid int value"),
        ("--config", "--config needs the path"),
        ("--config no-such.yaml", "no-such.yaml: No such file"),
    ],
)
def test_unknown_or_invalid_flags_are_refused(argv, said):
    with pytest.raises(UsageError, match=said):
        sft(*argv.split())


def test_words_before_the_first_flag():
    with pytest.raises(UsageError, match="flags begin with --"):
        parse(SftArguments, ["data.jsonl"], command="sft")


def test_unknown_flags_can_be_let_through(capsys):
    assert sft("--quux", "3", "--ignore_args_error", "--seed", "1").seed == 1
    assert "warning: Unknown flag --quux" in capsys.readouterr().err


# YAML


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_yaml_file_takes_the_same_converters_as_flags(tmp_path):
    file = write(
        tmp_path / "run.yaml",
        "# a run\nlearning_rate: 1e-5\neval_strategy: no\nsave_strategy: epoch\ndo_sample: off\nstrict: yes\n"
        "dataset: [a, b#100]\nval_dataset: c,d\nsystem: null\nval_dataset_sample:\nmodel-name: 007\n"
        "_comment: anything\nmax_length: -1\ntrain_args: {adam_beta1: 0.8, project: no}\n",
    )
    assert changed("--config", str(file)) == {
        "learning_rate": 1e-5,
        "eval_strategy": "no",
        "save_strategy": "epoch",
        "do_sample": False,
        "strict": True,
        "dataset": ["a", "b#100"],
        "val_dataset": ["c", "d"],
        "model_name": ["007"],
        "max_length": -1,
        "train_args": ["adam_beta1=0.8", "project=no"],
    }


def test_flags_beat_the_file(tmp_path):
    file = write(tmp_path / "run.yaml", "seed: 1\ndataset: [a, b]\nbatch_size: 3\n")
    for argv in (["--seed", "2", f"--config={file}"], ["--config", str(file), "--seed", "2"]):
        found = sft(*argv, "--dataset", "c")
        assert (found.seed, found.dataset, found.batch_size) == (2, ["c"], 3)


def test_later_file_beats_the_earlier(tmp_path):
    one, two = write(tmp_path / "1.yaml", "seed: 1\nbatch_size: 3"), write(tmp_path / "2.yaml", "seed: 2")
    found = sft("--config", str(one), str(two))
    assert (found.seed, found.batch_size) == (2, 3)


def test_json_and_neighbouring_flags_in_a_file(tmp_path):
    file = write(tmp_path / "run.json", json.dumps({"per_device_train_batch_size": 2, "bf16": True, "strict": False}))
    assert changed("--config", str(file)) == {"batch_size": 2, "eval_batch_size": 2, "dtype": "bf16"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batchsize: 3", r"--batchsize in .*run\.yaml\. Did you mean --batch_size"),
        ("- a\n- b", "one flag per line"),
        ("seed: [1, 2]", "--seed takes one value"),
        ("a: b: c", "is not YAML"),
        ("", "one flag per line"),
        ("seed: {a: 1}", "--seed: invalid int"),
    ],
)
def test_config_files_with_faults_are_refused(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        sft("--config", str(write(tmp_path / "run.yaml", text)))


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
FIELDS = {
    "seed": st.integers(0, 10**6),
    "learning_rate": st.floats(1e-8, 1.0),
    "do_sample": st.booleans(),
    "use_flash_attn": st.none() | st.booleans(),
    "system": st.none()
    | st.sampled_from(["null", "no", "1e-5", "~", "- x", "--x", "a: b", "", " y ", "a\n b\n"])
    | TEXTS,
    "dataset": st.lists(TEXTS.filter(lambda text: "," not in text and text.strip(" ,")), min_size=1, max_size=3),
    "train_args": st.lists(st.sampled_from(["adam_beta1=0.5", "project=a, b", "project=no"]), max_size=2),
    "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
    "save_steps": st.none() | st.integers(1, 99),
    "dtype": st.sampled_from([None, "bf16", "fp32"]),
    "sft_type": st.sampled_from(["lora", "full"]),
}


@pytest.mark.medium
@settings(max_examples=100, deadline=None)
@given(values=st.fixed_dictionaries({}, optional=FIELDS))
def test_arguments_survive_a_file(tmp_path_factory, values):
    args = SftArguments(model_type="llmtune-tiny", template_type="chatml", **values)
    text = yaml.safe_dump(dataclasses.asdict(args), allow_unicode=True)
    file = write(tmp_path_factory.mktemp("yaml") / "sft_args.yaml", text)
    assert parse(SftArguments, ["--config", str(file)], command="sft") == args


# Help


@pytest.mark.parametrize("cls", [SftArguments, InferArguments, EvaluateArguments, MergeArguments, ExportArguments])
def test_help_explains_every_flag(cls, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    text = build_parser(cls, command="x", summary="What it does.").format_help()
    assert "What it does." in text
    assert max(map(len, text.splitlines())) <= 110
    for base in filter(dataclasses.is_dataclass, cls.__mro__):
        explained = field_help(base)
        own = {
            field.name
            for field in dataclasses.fields(cls)
            if field.init and field.name in vars(base)["__annotations__"]
        }
        assert own <= set(explained)
    for field in dataclasses.fields(cls):
        assert (f"  --{field.name} " in text) == field.init


def test_help_of_a_flag_has_unit_and_default(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")  # xdist has no terminal: 80
    text = build_parser(SftArguments, command="sft").format_help()
    assert "--batch_size N                  Samples per device per forward pass (micro-batch size). [1]" in text
    assert "--quantization_bit {0,4,8}" in text


# The set of flags. A new one is a reviewed event: prefer a good default.

SHARED = """
model_type model_id_or_path model_revision use_hf hub_token cache_dir tokenizer_id_or_path template_type tool_format
sft_type tuner_backend dtype device_map use_flash_attn attn_impl trust_remote_code allow_pickle custom_register_path
seed dataset val_dataset dataset_test_ratio dataset_seed train_dataset_sample val_dataset_sample system
chat_template_kwargs max_length
max_pixels truncation_strategy loss_on special_tokens_in_text strict model_name model_author overwrite_cache
dataset_num_proc
max_new_tokens do_sample temperature top_k top_p repetition_penalty num_beams no_repeat_ngram_size
quantization_bit quant_method bnb_4bit_comp_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant
rope_scaling rope_factor ignore_args_error
"""
SFT = """
output_dir output_dir_flat resume_from_checkpoint num_train_epochs max_steps batch_size eval_batch_size
gradient_accumulation_steps learning_rate lr_scheduler_type warmup_ratio optim weight_decay max_grad_norm
gradient_checkpointing neftune_noise_alpha packing padding_free group_by_length dataloader_num_workers test_oom_error
pure_bf16 optim_offload
eval_strategy eval_steps save_strategy save_steps save_total_limit only_save_model logging_steps
predict_with_generate early_stopping_patience watch_prompts run_name report_to
lora_target_modules lora_rank lora_alpha lora_dropout_p lora_bias lora_init use_rslora use_dora lorap_lr_ratio
modules_to_save new_special_tokens peft_path
freeze_layers freeze_parameters freeze_vit freeze_aligner on_nan streaming
use_liger use_kernels torch_compile fp8_base shift_attn sequence_parallel_size
nproc max_restarts ddp_backend deepspeed_config_path fsdp fsdp_offload async_save
push_to_hub hub_model_id hub_private_repo push_hub_strategy train_args
"""
INFER = """
ckpt_dir load_args_from_ckpt_dir eval_human show_dataset_sample stream infer_batch_size
merge_lora_and_save save_generation_config result_dir device
"""
EVAL = """
ckpt_dir load_args_from_ckpt_dir device with_base all_checkpoints metrics num_samples choice_style suite suite_path
suite_chat num_fewshot eval_batch_size output_dir
"""
OF_CHECKPOINTS = """
ckpt_dir model_type model_id_or_path model_revision tokenizer_id_or_path template_type dtype max_shard_size output_dir
use_hf hub_token cache_dir trust_remote_code allow_pickle custom_register_path ignore_args_error
"""
MERGE = "resize_emb hf_hub_model_id"
EXPORT = """
push_to_hub hub_model_id hub_private_repo merge_lora quant_method quantization_bit calibration_dataset
num_calibration_samples group_size to gguf_type llama_cpp system
"""


@pytest.mark.parametrize(
    ("cls", "shared", "own"),
    [
        (SftArguments, SHARED, SFT),
        (InferArguments, SHARED, INFER),
        (EvaluateArguments, SHARED, EVAL),
        (MergeArguments, OF_CHECKPOINTS, MERGE),
        (ExportArguments, OF_CHECKPOINTS, EXPORT),
    ],
)
def test_the_set_of_flags_is_pinned(cls, shared, own):
    assert sorted(field.name for field in dataclasses.fields(cls) if field.init) == sorted(f"{shared} {own}".split())
