"""Resuming: each argument is fixed by the checkpoint, taken over from it, or may change and then really does."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.arguments.fields import on_resume
from llmtune.arguments.inheritance import resumed_arguments
from llmtune.checkpoint import last_checkpoint
from llmtune.errors import CheckpointError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.run.resume import RATES
from llmtune.utils.seal import sealed

FIELDS = {field.name: field for field in dataclasses.fields(SftArguments) if field.init}
OTHER: dict[str, tuple[Any, Any]] = {
    "model_type": ("llmtune-tiny", "qwen2.5-7b-instruct"), "template_type": ("chatml", "qwen3"),
    "tool_format": ("hermes", "react"), "sft_type": ("lora", "ia3"), "dtype": ("fp32", "bf16"),
    "truncation_strategy": ("left", "right"), "loss_on": ("auto", "all"), "special_tokens_in_text": ("text", "special"),
    "quantization_bit": (8, 4), "quant_method": ("bnb", "torchao"), "bnb_4bit_comp_dtype": ("bf16", "fp16"),
    "bnb_4bit_quant_type": ("nf4", "fp4"), "rope_scaling": ("linear", "yarn"), "lora_bias": ("none", "all"),
    "padding_free": ("true", "false"),
    "lora_init": ("default", "pissa"), "gradient_checkpointing": ("none", "full"), "on_nan": ("stop", "skip"),
    "eval_strategy": ("steps", "epoch"), "save_strategy": ("steps", "epoch"), "attn_impl": ("sdpa", "eager"),
    "report_to": (["tensorboard"], ["none"]), "lr_scheduler_type": ("cosine", "linear"),
    "optim": ("adamw_torch", "sgd"), "train_args": (["adam_beta1=0.9"], ["adam_beta1=0.8"]),
    "lora_target_modules": (["ALL"], ["q_proj"]), "freeze_parameters": (["embed"], ["norm"]),
    "rope_factor": (2.0, 4.0), "chat_template_kwargs": ('{"enable_thinking": true}', '{"enable_thinking": false}'),
}  # fmt: skip
NEEDS: dict[str, dict[str, Any]] = {
    "rope_factor": {"rope_scaling": "linear"}, "rope_scaling": {"rope_factor": 2.0},
    "chat_template_kwargs": {"template_type": "qwen3"},
    "streaming": {"max_steps": 5}, "max_steps": {}, "num_train_epochs": {"max_steps": -1},
}  # fmt: skip


def two_values(name: str) -> tuple[Any, Any]:
    """Two values that the argument may have."""
    if name in OTHER:
        return OTHER[name]
    if name == "model_id_or_path":
        return str(tiny_folder()), "Qwen/Qwen2.5-7B-Instruct"
    field = FIELDS[name]
    default = field.default if field.default is not dataclasses.MISSING else []
    if isinstance(default, bool) or "bool" in str(field.type):
        return True, False
    if "list" in str(field.type):
        return ["one"], ["two"]
    if "int" in str(field.type) and "str" not in str(field.type):
        return 3, 4
    return (0.5, 0.25) if "float" in str(field.type) else ("one", "two")


def saved_of(**values: Any) -> dict[str, Any]:
    return sealed(dataclasses.asdict(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"])) | values)


@pytest.mark.parametrize("name", FIELDS)
def test_every_argument_follows_its_rule(name, tmp_path):
    kind = on_resume(FIELDS[name])
    old, new = two_values(name)
    saved = saved_of(**NEEDS.get(name, {}) | {name: old})
    checkpoint = tmp_path / "checkpoint-4"
    if kind == "free":
        assert name not in resumed_arguments(SftArguments(), saved | {"custom_register_path": None}, checkpoint).taken
        return
    found = resumed_arguments(SftArguments(), saved, checkpoint)
    assert getattr(found.args, name) == old, "what is not given is the checkpoint's"
    assert name not in found.changed
    if name not in ("model_type", "sft_type"):  # with the same value given
        assert getattr(resumed_arguments(given({name: old}, saved), saved, checkpoint).args, name) == old
    if kind == "fixed":
        with pytest.raises(CheckpointError, match=f"--{name} .*, but this command has .*--{name} ") as refused:
            resumed_arguments(given({name: new}, saved), saved, checkpoint)
        assert "Use the same values" in str(refused.value)
    else:
        found = resumed_arguments(given({name: new}, saved), saved, checkpoint)
        assert getattr(found.args, name) == new
        assert found.changed == {name: old}
        assert any(f"{name} " in line and "->" in line for line in found.lines(checkpoint))


def given(values: dict[str, Any], saved: dict[str, Any]) -> SftArguments:
    """Arguments of which only these were given, the rest fitting them."""
    (name,) = values
    more = {key: saved[key] for key in NEEDS.get(name, {})} | (
        {"rope_scaling": "linear"} if name == "rope_factor" else {}
    )
    if name == "quantization_bit" or name.startswith("bnb"):
        more["quant_method"] = "bnb"
    if name == "quant_method":
        more["quantization_bit"] = 8
    args = SftArguments(**(more | values))
    args.given = frozenset(values)
    return args


def test_a_value_of_another_type_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"an invalid value of max_length: 'long'"):
        resumed_arguments(SftArguments(), saved_of(max_length="long"), tmp_path / "checkpoint-4")


def test_code_of_a_checkpoint_does_not_run_on_resume(tmp_path):
    saved = saved_of(custom_register_path="/tmp/mine.py")
    with pytest.raises(UsageError, match=r"--custom_register_path /tmp/mine\.py"):
        resumed_arguments(SftArguments(), saved, tmp_path / "checkpoint-4")


# Real runs


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps({"query": f"q{n}", "response": f"a {n}"}) + "\n" for n in range(16)))
    return str(file)


SMALL: dict[str, Any] = {
    "model_type": "llmtune-tiny", "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    "logging_steps": 1, "report_to": ["none"], "dtype": "fp32", "dataset_test_ratio": 0.0, "max_length": 64,
    "gradient_checkpointing": "none", "save_total_limit": -1, "save_steps": 2, "seed": 7, "lora_alpha": 64,
    "use_rslora": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def half(rows, tmp_path_factory) -> Path:
    """A run that stopped at step 4 of 8."""
    return sft(
        SftArguments(**SMALL, dataset=[rows], max_steps=4, output_dir=str(tmp_path_factory.mktemp("run")))
    ).output_dir


@pytest.fixture
def run(half, tmp_path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "llmtune-tiny" / half.name))


def go_on(run: Path, **options: Any) -> list[dict[str, Any]]:
    """The log records behind step 4."""
    settings = {"max_steps": 8, "resume_from_checkpoint": str(run / "checkpoint-4")} | options
    sft(SftArguments(**settings))
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    return [line for line in lines if line["global_step"] > 4]


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def whole(half, tmp_path_factory) -> list[dict[str, Any]]:
    """What follows where nothing but the number of steps is given."""
    place = tmp_path_factory.mktemp("whole") / "llmtune-tiny" / half.name
    return go_on(Path(shutil.copytree(half, place)))


@pytest.mark.medium
def test_alone_it_says_all_that_the_run_was_trained_with(half, rows, whole, tmp_path, capsys):
    place = Path(shutil.copytree(half, tmp_path / "llmtune-tiny" / half.name))
    assert losses(go_on(place, **SMALL, dataset=[rows])) == losses(whole)
    said = capsys.readouterr().err
    assert "Changed since checkpoint-4: max_steps 4 -> 8.\n" in said


@pytest.mark.parametrize(
    ("options", "rate"),
    [({"learning_rate": 1e-5}, 1e-5), ({"lr_scheduler_type": "constant"}, 1e-3), ({"weight_decay": 5.0}, 1e-3)],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_rates_that_are_changed_take_effect(run, whole, options, rate, capsys):
    found = go_on(run, **options)
    (name,) = options
    assert name in RATES
    assert re.search(f"Changed since checkpoint-4: .*{name} .* -> ", capsys.readouterr().err)
    assert losses(found)[0] == losses(whole)[0], "the first step is made by the weights of the checkpoint"
    assert losses(found)[2:] != losses(whole)[2:]
    rates = [record["learning_rate"] for record in found if "learning_rate" in record]
    assert max(rates) <= rate * (1 + 1e-9)
    assert (len(set(rates)) == 1) == (options.get("lr_scheduler_type") == "constant")


@pytest.mark.parametrize("options", [{"lora_rank": 16}, {"lora_target_modules": ["q_proj"]}, {"optim": "sgd"},
                                     {"use_dora": True}, {"lora_alpha": 32}, {"system": "Be brief."},
                                     {"new_special_tokens": ["<new>"]}], ids=lambda one: next(iter(one)))  # fmt: skip
def test_another_run_under_the_old_name_is_refused(run, options):
    (name,) = options
    with pytest.raises(CheckpointError, match=f"was trained with .*--{name} .* this command has --{name} "):
        go_on(run, **options)


def test_other_data_is_refused_with_both_counts(run, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"query": f"q{n}", "response": f"b {n}"}) + "\n" for n in range(16)))
    with pytest.raises(CheckpointError, match=r"trained on other data: 16 samples, .* this run has 16 samples"):
        go_on(run, dataset=[str(other)])


def test_the_same_data_in_another_place_is_the_same_run(run, rows, whole, tmp_path):
    moved = tmp_path / "moved.jsonl"
    shutil.copy(rows, moved)
    assert losses(go_on(run, dataset=[str(moved)])) == losses(whole)


def test_steps_between_logs_and_checkpoints_follow_the_command(run):
    found = go_on(run, logging_steps=2, save_steps=3)
    assert [record["global_step"] for record in found if "loss" in record] == [6, 8]
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 4, 6, 8)}


def test_the_same_step_cut_in_other_batches(run, whole):
    found = losses(go_on(run, batch_size=1, gradient_accumulation_steps=2))
    assert found == pytest.approx(losses(whole), rel=1e-5)


def test_checkpoints_behind_the_one_that_is_resumed_are_set_aside(run, capsys):
    go_on(run, resume_from_checkpoint=str(run / "checkpoint-2"), max_steps=3, save_steps=3)
    assert {path.name for path in run.glob("*checkpoint-*")} == {
        "checkpoint-2", "checkpoint-3", "superseded-checkpoint-4"
    }  # fmt: skip
    assert last_checkpoint(run) == run / "checkpoint-3"
    assert "checkpoint-4, trained after it, set aside" in capsys.readouterr().err


def test_a_checkpoint_under_another_name_sets_nothing_of_before_aside(run):
    (run / "checkpoint-4").rename(run / "copy")
    sft(SftArguments(max_steps=5, save_steps=5, resume_from_checkpoint=str(run / "copy")))
    assert {path.name for path in run.glob("*checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}


DAMAGE = {
    "optimizer.pt": "optimizer's state",
    "scheduler.pt": "optimizer's state",
    "rng_state.pth": "random state",
    "adapter_model.safetensors": "weights",
}


@pytest.mark.parametrize("kind", ["zeroed", "text", "empty"])
@pytest.mark.parametrize("name", [*DAMAGE, "trainer_state.json", "checkpoint.json", "sft_args.json"])
def test_damaged_files_are_named(run, name, kind):
    for number in (2, 4):
        file = run / f"checkpoint-{number}" / name
        size = file.stat().st_size
        file.write_bytes({"zeroed": b"\0" * size, "text": b"[1]".ljust(size)[:size], "empty": b""}[kind])
        if kind == "empty" and name in DAMAGE:
            (run / f"checkpoint-{number}" / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError) as refused:
        go_on(run)
    assert "weights_only" not in str(refused.value)
    assert name in str(refused.value) or DAMAGE[name] in str(refused.value).lower()
