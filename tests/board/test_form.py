"""A form, its YAML, its command line and the arguments are one thing, for every field of every stage."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.arguments.parser import parse
from llmtune.arguments.secrets import SECRETS
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.board import form, texts
from llmtune.errors import LlmtuneError, UsageError
from llmtune.run.status import State

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)


def values_of(field: form.FormField) -> st.SearchStrategy[Any]:
    if field.kind == "flag":
        one = st.sampled_from(["true", "false"])
    elif field.choices:
        one = st.sampled_from(field.choices)
    elif field.kind == "number":
        one = st.sampled_from(["1", "2", "0.5", "1e-4", "-1"])
    else:
        one = TEXTS.map(str.strip).filter(lambda text: text and not text.startswith("--"))
    return st.lists(one, min_size=1, max_size=3) if field.is_list else one


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_but_secrets_is_in_the_form(stage):
    names = {item.name for item in dataclasses.fields(stage_arguments(stage)) if item.init}
    assert {field.name for field in form.form_fields(stage)} == names - set(SECRETS)
    assert set(form.FIRST) <= names
    assert all(field.help and field.group for field in form.form_fields(stage))


@pytest.mark.parametrize("stage", STAGES)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_form_yaml_and_arguments_are_the_same(stage, data, tmp_path):
    """Each field in turn, beside a few others; what the arguments refuse, they refuse in all spellings alike."""
    fields = form.form_fields(stage)
    chosen = data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=4, unique_by=lambda field: field.name))
    values = form.clean(
        stage, {"model_type": "llmtune-tiny", **{one.name: data.draw(values_of(one)) for one in chosen}}
    )
    file = tmp_path / "run.yaml"
    file.write_text(form.yaml_of(stage, values), encoding="utf-8")
    assert form.read_form(file) == (stage, values, [])
    assert parsed(stage, ["--config", str(file)]) == parsed(stage, form.argv_of(values))
    copied = shlex.split(form.command_of(stage, values))
    assert copied == ["llmtune", stage, *form.argv_of(values)]


def parsed(stage: str, argv: list[str]) -> Any:
    try:
        return parse(stage_arguments(stage), argv, command=stage)
    except LlmtuneError as err:
        return str(err).replace(argv[-1], "FILE") if argv[0] == "--config" else str(err)


@pytest.mark.parametrize(
    ("name", "typed", "kept"),
    [
        ("lora_target_modules", ["q_proj v_proj"], ["q_proj", "v_proj"]),
        ("lora_target_modules", ["q_proj v_proj", "o_proj"], ["q_proj", "v_proj", "o_proj"]),
        ("lora_target_modules", ["all-linear"], ["ALL"]),
        ("gradient_checkpointing", "true", "full"),
        ("model_type", "auto", None),
    ],
)
def test_other_spellings_of_a_flag_become_ours(name, typed, kept, tmp_path):
    values = form.clean("sft", {name: typed})
    assert values == ({name: kept} if kept else {})
    file = tmp_path / "run.yaml"
    file.write_text(form.yaml_of("sft", values), encoding="utf-8")
    assert form.read_form(file) == ("sft", values, [])


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_of_every_stage_survives_its_file(stage, tmp_path):
    for field in form.form_fields(stage):
        value = field.choices[0] if field.choices else "true" if field.kind == "flag" else "3"
        values = form.clean(stage, {field.name: [value] if field.is_list else value})
        assert values, field.name
        file = tmp_path / "run.yaml"
        file.write_text(form.yaml_of(stage, values), encoding="utf-8")
        assert form.read_form(file) == (stage, values, []), field.name


def test_empty_values_unknown_names_and_secrets_go():
    values = {
        "learning_rate": " ",
        "nowhere": "1",
        "hub_token": "secret",
        "dataset": ["", "a "],
        "packing": False,
        "seed": 0,
    }
    assert form.clean("sft", values) == {"dataset": ["a"], "packing": "false", "seed": "0"}


def test_what_no_command_line_can_say_is_said():
    assert form.argv_of({"system": "--x"}) == ["--system=--x"]
    with pytest.raises(UsageError, match="begins with --"):
        form.argv_of({"dataset": ["a", "--b"]})


def test_files_of_neighbours_are_read(tmp_path):
    file = tmp_path / "lf.yaml"
    file.write_text("stage: sft\nfinetuning_type: lora\nlora_rank: 16\ncutoff_len: 512\ntemplate: qwen\n"
                    "dataset: tiny-qa\nmodel_name_or_path: Qwen/Qwen2-7B\nuse_badam: true\n")  # fmt: skip
    stage, values, lines = form.read_form(file)
    assert (stage, values["lora_rank"], values["max_length"]) == ("sft", "16", "512")
    assert [line.split(":")[0] for line in lines] == ["use_badam"]


def test_every_text_of_the_board_is_shown_somewhere():
    files = [file for file in Path(form.__file__).parent.rglob("*.py") if file.stem != "texts"]
    pages = "".join(file.read_text("utf-8") for file in files)
    shown = {*re.findall(r"""["'](\w+)["']""", pages), *get_args(State)}
    assert texts.TEXTS.keys() - shown == set()
    assert all(english and chinese for english, chinese in texts.TEXTS.values())


# What the board does not start


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", "true"), ("allow_pickle", "1"), ("custom_register_path", "mine.py"),
        ("use_kernels", "yes"), ("deepspeed_config_path", "mine.json"),
    ],
)  # fmt: skip
def test_what_runs_code_is_refused_unless_allowed(tmp_path, name, value):
    assert name in form.refusals("sft", {name: value}, tmp_path, allow_code=False)
    assert not form.refusals("sft", {name: value}, tmp_path, allow_code=True)


def test_reward_files_run_code_and_reward_models_do_not(tmp_path):
    for items, refused in (["mine.py:fn"], True), (["accuracy", "rm:model"], False), (["accuracy*0.5"], False):
        assert bool(form.refusals("grpo", {"rewards": items}, tmp_path, allow_code=False)) == refused, items
    assert form.refusals("grpo", {"tool_functions": ["shop.py"]}, tmp_path, allow_code=False)
    assert not form.refusals(
        "sft", {"trust_remote_code": "false", "deepspeed_config_path": "zero2"}, tmp_path, allow_code=False
    )


def test_paths_outside_of_the_root_are_refused(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "data.jsonl").write_text("{}")
    (root / "link").symlink_to(other)
    (root / "mine.jsonl").write_text("{}")
    bad = [
        "../other/data.jsonl",
        str(other / "data.jsonl"),
        "link/data.jsonl",
        "~/x.jsonl",
        "../nowhere.jsonl",
        "/etc/passwd",
    ]
    for text in bad:
        assert form.refusals("sft", {"dataset": [text]}, root, allow_code=True), text
        assert form.refusals("sft", {"dataset": [f"{text}#20"]}, root, allow_code=True), text
        assert form.refusals("sft", {"output_dir": text}, root, allow_code=True), text
    for text in ("mine.jsonl", str(root / "mine.jsonl"), "tiny-qa#20", "Qwen/Qwen2-7B", "ms::org/name:sub"):
        assert not form.refusals("sft", {"dataset": [text]}, root, allow_code=True), text


def test_values_that_are_no_paths_are_left_alone(tmp_path: Path):
    values = {"system": "You /are/ here", "train_args": ["adam_beta1=0.5"], "freeze_parameters": [r"layers\.\d+"]}
    assert not form.refusals("sft", values, tmp_path, allow_code=False)
