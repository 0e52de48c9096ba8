"""Files of LLaMA-Factory and Axolotl: their examples by keys and values, what is refused, what is set for them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from llmtune.arguments.elsewhere import axolotl, llama_factory, templates
from llmtune.arguments.elsewhere.files import is_config_word, load_config, stage_in, translation_of
from llmtune.arguments.elsewhere.translation import Translation, is_on
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.parser import parse
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.cli.convert import as_yaml, converted
from llmtune.cli.main import main
from llmtune.errors import UsageError
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.utils import logging

DATA = {"sft": "tiny-qa", "pt": "tiny-text", "dpo": "tiny-pairs", "rm": "tiny-pairs", "kto": "tiny-labels"}


class Example(NamedTuple):
    tool: str
    name: str
    content: dict[str, Any]
    refused: list[str]


def examples() -> list[Example]:
    """The facts of neighbour_examples.jsonl: the usual keys of each tool, and what an example has instead."""
    found, usual = [], {}
    for line in (Path(__file__).parent / "neighbour_examples.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        if "usual" in row:
            usual = row["usual"]
            continue
        content = {key: value for key, value in usual.items() if key not in row.get("without", [])} | row["keys"]
        found.append(Example(row["tool"], row["example"], content, row.get("refused", [])))
    return found


EXAMPLES = examples()
PASSING = [one for one in EXAMPLES if not one.refused]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "_said", set())
    monkeypatch.delenv("USE_MODELSCOPE_HUB", raising=False)


def written(content: dict[str, Any], name: str = "run.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return Path(name)


def replaced(stage: str) -> list[str]:
    data = DATA.get(stage, "tiny-qa")
    found = ["--model_id_or_path", "llmtune-tiny", "--dataset", data, "--val_dataset", data]
    return [*found, "--ckpt_dir", ""] if stage == "infer" else found


def test_the_counts_that_the_docs_state():
    theirs = [one for one in EXAMPLES if one.tool == "LLaMA-Factory"]
    sft = [one for one in theirs if one.content["stage"] == "sft"]
    assert (len(sft), len([one for one in sft if not one.refused])) == (45, 24)
    assert all(not one.refused for one in theirs if one.content["stage"] != "sft")
    assert len([one for one in PASSING if one.tool == "Axolotl"]) >= 25


@pytest.mark.medium
@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{one.tool}: {one.name}" for one in EXAMPLES])
def test_an_example_runs_as_it_is_or_names_all_that_it_cannot(example, capsys):
    file = written(example.content)
    stage = stage_in(load_config(file), []) or ""
    status = main(["train", str(file), *replaced(stage), "--dry_run", "true"])
    said = capsys.readouterr()
    assert f"run.yaml is a file of {example.tool}, stage {stage}: " in said.err
    if not example.refused:
        assert (status, said.out.splitlines()[-1][:8]) == (0, "Dry run:"), said.err
        return
    lines = said.err.partition("llmtune: ")[2].splitlines()
    assert status == 2
    assert list(dict.fromkeys(line.partition("run.yaml, ")[2].partition(":")[0] for line in lines)) == example.refused


@pytest.mark.medium
@pytest.mark.parametrize("example", PASSING, ids=[f"{one.tool}: {one.name}" for one in PASSING])
def test_the_converted_file_gives_the_same_arguments(example):
    file = written(example.content)
    found = converted(file)
    ours = Path("ours.yaml")
    ours.write_text(as_yaml(found, file))
    cls = InferArguments if found.stage == "infer" else stage_arguments(found.stage)
    argv = replaced(found.stage)
    assert translation_of(load_config(ours), []) is None
    one, other = (parse(cls, ["--config", str(path), *argv], command=found.stage) for path in (file, ours))
    assert vars(one) == vars(other)


# What changes the result is refused, all of it at once


LF = {"model_name_or_path": "llmtune-tiny", "stage": "sft", "finetuning_type": "lora", "template": "llama3"}
AX = {"base_model": "llmtune-tiny", "micro_batch_size": 2, "adapter": "lora", "datasets": [{"path": "tiny-qa"}]}


def told(content: dict[str, Any], *argv: str, command: str = "sft") -> Any:
    return parse(stage_arguments(command), [str(written(content)), *argv], command=command)


def refusals(content: dict[str, Any], *argv: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        told(content, *argv)
    return str(caught.value).splitlines()


def test_unknown_flags_of_a_command_line_are_told_at_once(capsys):
    assert main(["sft", "--lora_rang", "8", "--learning_rat", "1", "--seed", "x", "--torch_dtype", "int3"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition("llmtune: ")[2].partition(".")[0][:28] for line in said] == [
        "--torch_dtype int3: expected", "Unknown flag --lora_rang", "Unknown flag --learning_rat",
        "--seed: invalid int value: '",
    ]  # fmt: skip
    assert "Did you mean --lora_rank" in said[1]


def test_unknown_keys_of_our_own_file_are_told_at_once():
    lines = refusals({"model_type": "llmtune-tiny", "lora_rang": 8, "batchsize": 1}, "--sead", "1")
    assert [line.partition(" in ")[0].partition(".")[0] for line in lines] == [
        "Unknown flag --lora_rang", "Unknown flag --batchsize", "Unknown flag --sead",
    ]  # fmt: skip


def test_keys_of_a_feature_that_we_lack_are_refused_at_once_with_unknown_ones():
    content = {**LF, "use_badam": True, "badam_mode": "layer", "use_dft_loss": True, "cutof_len": 9}
    lines = refusals(content, "--seeed", "1")
    assert [line.partition("run.yaml, ")[2].partition(":")[0] for line in lines[:3]] == [
        "use_badam", "use_dft_loss", "cutof_len",
    ]  # fmt: skip
    assert "Did you mean cutoff_len" in lines[2]
    assert "--seeed" in lines[3]


@pytest.mark.parametrize(
    ("keys", "optim", "settings"),
    [
        (
            {"use_galore": True, "galore_rank": 128, "galore_layerwise": True},
            "galore_adamw_layerwise",
            "rank=128,update_proj_gap=200,scale=2.0,proj_type=std",
        ),
        (
            {"use_apollo": True, "apollo_scale_type": "tensor", "apollo_target": "all"},
            "apollo_adamw",
            "rank=16,update_proj_gap=200,scale=32.0,proj=random,proj_type=std,scale_type=tensor",
        ),
    ],
)
def test_projected_gradients(keys, optim, settings):
    content = {key: value for key, value in LF.items() if not key.startswith("lora")}
    found = translation_of({**content, "finetuning_type": "full", **keys}, [])
    assert found is not None
    values = {line.flag: line.values for line in found.lines}
    assert values["optim"] == (optim,)
    assert values["train_args"] == (f"optim_args={settings}",)
    assert not {key for key, _ in found.harmless} & keys.keys()


def test_layers_to_project_are_named_by_ours():
    (line,) = refusals({**LF, "finetuning_type": "full", "use_galore": True, "galore_target": "q_proj,v_proj"})
    assert "galore_target" in line
    assert "--train_args optim_target_modules=NAME" in line


@pytest.mark.parametrize("off", [False, None, "none", "", 0])
def test_a_feature_that_is_off_is_no_error(off):
    told({**LF, "use_galore": off, "galore_rank": 8, "use_kt": off, "no_such_key": off}, "--dataset", "tiny-qa")
    told({**AX, "relora": off, "qat": off, "no_such_key": off})


def test_a_flag_replaces_what_the_file_could_not_say():
    content = {**LF, "template": "fewshot", "dataset": "nowhere"}
    assert [line.partition(", ")[2].partition(":")[0] for line in refusals(content)] == ["template", "dataset"]
    found = told(content, "--template_type", "chatml", "--dataset", "tiny-qa")
    assert (found.template_type, found.dataset) == ("chatml", ["tiny-qa"])


def test_flags_beat_the_file_and_its_defaults():
    found = told({**LF, "num_train_epochs": 2}, "--seed", "7", "--num_train_epochs", "5", "--warmup_ratio", "0.2",
                 "--dataset", "tiny-qa")  # fmt: skip
    assert (found.seed, found.num_train_epochs, found.warmup_ratio) == (7, 5.0, 0.2)


# Defaults of theirs


def test_what_llama_factory_leaves_out_has_its_default():
    found = told({**LF, "dataset": "tiny-qa", "lora_rank": 4})
    assert (found.num_train_epochs, found.batch_size, found.gradient_accumulation_steps) == (3.0, 8, 1)
    assert (found.learning_rate, found.lr_scheduler_type, found.warmup_ratio, found.weight_decay) == (
        5e-5,
        "linear",
        0,
        0,
    )
    assert (found.lora_alpha, found.lora_target_modules, found.train_dataset_sample) == (8, ["ALL"], -1)
    assert (found.dataset_test_ratio, found.loss_on, found.truncation_strategy) == (0, "all", "right")
    assert found.use_hf


def test_what_axolotl_leaves_out_has_its_default():
    found = told({key: value for key, value in AX.items() if key != "adapter"})
    assert (found.sft_type, found.num_train_epochs, found.gradient_accumulation_steps) == ("full", 1.0, 1)
    assert (found.max_length, found.truncation_strategy, found.warmup_ratio) == (512, "delete", 0.03)
    assert (found.dataset_test_ratio, found.train_dataset_sample, found.loss_on) == (0, -1, "all")


def test_warmup_in_steps_leaves_the_ratio_alone():
    for content in ({**LF, "dataset": "tiny-qa", "warmup_steps": 9}, {**AX, "warmup_steps": 9}):
        assert told(content).train_args == ["warmup_steps=9"]
    assert told({**AX, "warmup_steps": 0.25}).warmup_ratio == 0.25


def test_modelscope_is_asked_where_llama_factory_would(monkeypatch):
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert told({**LF, "dataset": "tiny-qa"}).use_hf is None


# Data


INFO = {
    "rows": {"file_name": "rows.json", "num_samples": 5},
    "online": {"hf_hub_url": "org/rows", "ms_hub_url": "ms/rows", "subset": "part"},
    "odd": {"file_name": "rows.json", "columns": {"prompt": "frage"}},
    "split": {"file_name": "rows.json", "split": "test"},
    "script": {"script_url": "x"},
}


def with_info(**content: Any) -> dict[str, Any]:
    Path("data").mkdir(exist_ok=True)
    Path("data/dataset_info.json").write_text(json.dumps(INFO))
    return {**LF, **content}


def test_names_of_dataset_info_are_files_and_repositories(monkeypatch):
    assert told(with_info(dataset="rows, online")).dataset == ["data/rows.json#5", "hf::org/rows:part"]
    limited = told(with_info(dataset="rows,online", max_samples=9))
    assert limited.dataset == ["data/rows.json#5", "hf::org/rows:part#9"]
    assert limited.train_dataset_sample == 18
    monkeypatch.setenv("USE_MODELSCOPE_HUB", "1")
    assert told(with_info(dataset="online")).dataset == ["ms::ms/rows:part"]


@pytest.mark.parametrize(("name", "reason"), [
    ("odd", "column 'frage' is its prompt"), ("split", "split test"), ("script", "script"),
    ("none", "does not name none"),
])  # fmt: skip
def test_datasets_whose_rows_we_would_misread_are_refused(name, reason):
    (line,) = refusals(with_info(dataset=name))
    assert reason in line
    assert told(with_info(dataset=name), "--dataset", "tiny-qa").dataset == ["tiny-qa"]


@pytest.mark.parametrize(("dataset", "item"), [
    ({"path": "org/rows", "type": "alpaca"}, "hf::org/rows"),
    ({"path": "org/rows", "name": "en", "split": "train[:100]", "type": "alpaca"}, "hf::org/rows:en#100"),
    ({"path": "tiny-qa", "type": "alpaca", "ds_type": "json"}, "tiny-qa"),
])  # fmt: skip
def test_items_of_axolotl(dataset, item):
    assert told({**AX, "datasets": [dataset]}).dataset == [item]


@pytest.mark.parametrize(("key", "value"), [
    ("split", "train[:5%]"), ("split", "test"), ("field_messages", "turns"), ("roles_to_train", ["user"]),
    ("shards", 3), ("message_property_mappings", {"role": "who", "content": "value"}), 
    ("roles", {"assistant": ["bot"]}),
    ("train_on_eos", "none"), ("data_files", ["far.json"]),
])  # fmt: skip
def test_datasets_of_axolotl_that_we_would_misread_are_refused(key, value):
    content = {**AX, "datasets": [{"path": "org/rows", "type": "chat_template", key: value}]}
    (line,) = refusals(content)
    assert "datasets: " in line
    assert told(content, "--dataset", "tiny-qa").dataset == ["tiny-qa"]


@pytest.mark.parametrize(("kind", "chat_template", "template"), [
    ("alpaca", None, "alpaca"), ("chat_template", None, "auto"), ("chat_template", "chatml", "qwen3-instruct"),
    ("chat_template", "llama3", "llama3"), ("chat_template", "tokenizer_default_fallback_chatml", "auto"),
])  # fmt: skip
def test_the_type_of_a_dataset_says_the_template(kind, chat_template, template):
    content = {**AX, "datasets": [{"path": "tiny-qa", "type": kind}], "chat_template": chat_template}
    assert told(content).template_type == template


@pytest.mark.parametrize("kind", ["input_output", "alpaca:phi", {"field_instruction": "q"}, "mine.load"])
def test_formats_of_its_own_are_refused(kind):
    assert refusals({**AX, "datasets": [{"path": "tiny-qa", "type": kind}]})


def test_one_run_has_one_template():
    rows = [{"path": "tiny-qa", "type": "alpaca"}, {"path": "tiny-qa", "type": "chat_template"}]
    assert "share a template" in refusals({**AX, "datasets": rows})[0]


@pytest.mark.parametrize(("template", "tokens", "refused"), [
    ("llama3", {"eos_token": "<|eot_id|>", "pad_token": "x"}, False), ("llama3", {"eos_token": "<|end|>"}, True),
    ("tokenizer_default", {"bos_token": "<s>", "eos_token": "</s>"}, False),
    ("chatml", {"bos_token": "<|im_start|>"}, False), ("tokenizer_default", {"bos_token": "<x>"}, True),
])  # fmt: skip
def test_special_tokens_must_be_those_of_the_template(template, tokens, refused):
    content = {**AX, "datasets": [{"path": "tiny-qa", "type": "chat_template"}], "chat_template": template,
               "special_tokens": tokens}  # fmt: skip
    if refused:
        assert "special_tokens" in refusals(content)[0]
    else:
        told(content)


# Which file is it, and of which stage


@pytest.mark.parametrize(("content", "stage"), [
    (LF, "sft"), ({**LF, "stage": "kto"}, "kto"), (AX, "sft"), ({**AX, "rl": "orpo"}, "dpo"),
    ({**AX, "rl": "kto"}, "kto"), ({**AX, "reward_model": True}, "rm"),
    ({**AX, "datasets": [{"path": "x", "type": "completion"}]}, "pt"),
    ({**AX, "pretraining_dataset": "x"}, "pt"), ({"model_type": "llmtune-tiny", "stage": "dpo"}, "dpo"),
    ({"model_type": "llmtune-tiny"}, None), ({"model_name_or_path": "x", "lora_r": 8}, None),
    ({**LF, "model_id_or_path": "x", "stage": "dpo"}, "dpo"),
    ({**LF, "do_predict": True}, "infer"), ({**LF, "do_predict": True, "do_train": True}, "sft"),
])  # fmt: skip
def test_the_stage_of_a_file(content, stage):
    assert (
        stage_in({key: value if isinstance(value, list) else str(value) for key, value in content.items()}, []) == stage
    )


def test_orpo_of_axolotl_is_dpo_with_that_loss():
    rows = [{"path": "tiny-pairs", "type": "chat_template.default"}]
    found = told({**AX, "rl": "orpo", "orpo_alpha": 0.2, "datasets": rows}, command="dpo")
    assert (found.loss, found.beta) == (["orpo"], 0.2)


def test_a_file_of_another_stage_names_the_command(capsys):
    file = written({**LF, "stage": "kto"})
    assert main(["dpo", str(file)]) == 2
    assert "run.yaml is of the stage kto: call llmtune kto run.yaml" in capsys.readouterr().err
    ours = written({"model_type": "llmtune-tiny", "stage": "dpo"}, "ours.yaml")
    assert main(["sft", str(ours)]) == 2
    assert "call llmtune dpo ours.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sft", "train", "check", "plan"])
def test_a_word_before_the_flags_is_the_file(command, capsys):
    file = written({"model_type": "llmtune-tiny", "dataset": "tiny-qa", "stage": "sft", "seeed": 1})
    assert main([command, str(file)]) == 2
    assert "Unknown flag --seeed in run.yaml" in capsys.readouterr().err


def test_check_and_plan_take_the_stage_of_the_file(capsys):
    file = written(
        {"model_type": "llmtune-tiny", "dataset": "tiny-pairs", "stage": "dpo", "label_smoothing": 0.1, "x": 1}
    )
    for argv in (["check", str(file)], ["plan", "--config", str(file)]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert "--x in run.yaml" in said  # of dpo: label_smoothing is known
        assert "label_smoothing" not in said


@pytest.mark.parametrize(("word", "expected"), [("a.yaml", True), ("a.YML", True), ("a.json", True), ("dpo", False),
                                                ("a.jsonl", False), ("-a.yaml", False),
                                                ("x" * 300, False)])  # fmt: skip
def test_what_counts_as_a_file_of_flags(word, expected):
    assert is_config_word(word) is expected


def run_of(**values: Any) -> Path:
    folder = Path("run")
    folder.mkdir(exist_ok=True)
    (folder / "sft_args.json").write_text(json.dumps({"model_type": "llmtune-tiny", "dataset": ["tiny-qa"], **values}))
    return folder


def test_a_run_folder_repeats_the_run(capsys):
    folder = run_of(seed=5, _stage="sft")
    assert main(["train", str(folder), "--dry_run", "true"]) == 0
    assert parse(stage_arguments("sft"), [str(folder)], command="sft").seed == 5
    assert "tiny-qa" in capsys.readouterr().out


@pytest.mark.parametrize("values", [{"custom_register_path": "evil.py"}, {"dataset": ["/etc/passwd"]}])
def test_a_run_folder_from_elsewhere_names_no_code_and_no_local_paths(values):
    folder = run_of(**values)
    with pytest.raises(UsageError, match="unless you ask for it"):
        parse(stage_arguments("sft"), [str(folder)], command="sft")


# The tables


@pytest.mark.parametrize("names", [templates.LLAMA_FACTORY, templates.AXOLOTL])
def test_every_template_is_one_of_ours(names):
    assert set(names.values()) <= set(TEMPLATE_MAPPING)


@pytest.mark.parametrize("tool", [llama_factory, axolotl])
def test_every_plain_rule_names_a_flag(tool):
    flags = {name for stage in STAGES for name in stage_arguments(stage).__dataclass_fields__}
    flags |= set(InferArguments.__dataclass_fields__) | {"early_stopping_patience"}
    assert {rule for rule in tool.RULES.values() if isinstance(rule, str)} <= flags


def test_values_that_are_no_switch_are_refused_with_their_key():
    assert refusals({**LF, "disable_gradient_checkpointing": "perhaps", "dataset": "tiny-qa"}) == [
        "run.yaml, disable_gradient_checkpointing: perhaps: expected true or false, not 'perhaps'."
    ]
    with pytest.raises(ValueError, match="true or false"):
        is_on("maybe")


def test_a_default_is_no_key_of_the_file():
    found = Translation("x", {})
    found.set("seed", 1, theirs="s")
    found.default("seed", 2)
    found.default("batch_size", 3)
    assert [(line.flag, line.values, line.theirs) for line in found.lines] == [
        ("seed", ("1",), "s"),
        ("batch_size", ("3",), ""),
    ]


def test_convert_prints_what_it_cannot_say_as_comments(capsys):
    file = written(
        {**LF, "use_badam": True, "plot_loss": True, "warmup_steps": 3, "adam_beta1": 0.8, "dataset": "tiny-qa"}
    )
    assert main(["convert", str(file)]) == 0
    said = capsys.readouterr()
    assert "# Cannot be said here" in said.out
    assert "#   use_badam: true: llmtune has no BAdam optimizer" in said.out
    assert "#   plot_loss: images/" in said.out
    assert yaml.safe_load(said.out)["train_args"] == ["warmup_steps=3", "adam_beta1=0.8"]
    assert "1 of 9 keys" in said.err
    Path("ours.yaml").write_text(said.out)
    assert main(["sft", "--config", "ours.yaml", "--dry_run", "true"]) == 0


def test_convert_translates_the_spellings_of_our_own_file(capsys):
    assert main(["convert", str(written({"model_type": "llmtune-tiny", "lora_r": 4, "do_train": True}))]) == 0
    assert "lora_rank: 4  # lora_r" in capsys.readouterr().out


def test_the_examples_of_a_checkout_are_counted(capsys, monkeypatch):
    Path("examples").mkdir()
    written({**LF, "cutoff_len": 64}, "examples/passes.yaml")
    written({**LF, "cutoff_len": 64, "use_kt": True}, "examples/refused.yaml")
    written({**AX, "lora_target_modules": ["in_proj"]}, "examples/layers.yml")  # names of layers of another model
    written({"some": "thing"}, "examples/other.yaml")
    script = Path(__file__).parents[2] / "benchmarks/neighbours_yaml.py"
    monkeypatch.setattr("sys.argv", [str(script), "examples", "--details"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "sft: 2 of 3 pass",
        "  passes   layers.yml",
        "  passes   passes.yaml",
        "  refused  refused.yaml: use_kt: true: llmtune has no KTransformers.",
    ]


# Whatever stands in a file, the answer is a line


STRANGE = (
    *(True, 0, -1, 10**20, float("nan"), "", "x", "#", "a,b", "1e-5", [], {}, [None], [[1]], [{"path": None}]),
    *(
        {"path": 1},
        {"a": {"b": [1]}},
        [{"path": "x", "type": {"a": "b"}, "split": []}],
        ["x", {}],
        "train[:",
        [1, "\n"],
    ),
)
OWN_KEYS = {
    llama_factory: ("stage", "dataset", "eval_dataset", "dataset_dir", "max_samples", "lora_rank", "do_predict"),
    axolotl: ("datasets", "test_datasets", "pretraining_dataset", "rl", "reward_model", "trl", "chat_template",
              "special_tokens", "lora_alpha", "learning_rate"),
}  # fmt: skip


def as_loaded(value: Any) -> Any:
    """A value as the loader of files gives it: words are text, but for null."""
    if isinstance(value, dict):
        return {key: as_loaded(one) for key, one in value.items()}
    return [as_loaded(one) for one in value] if isinstance(value, list) else value if value is None else str(value)


@pytest.mark.medium
@pytest.mark.parametrize(("tool", "base"), [(llama_factory, LF), (axolotl, AX)], ids=["LLaMA-Factory", "Axolotl"])
def test_strange_values_are_refused_in_a_line(tool, base):
    known = set(stage_arguments("sft").__dataclass_fields__)
    for key in (*tool.RULES, *OWN_KEYS[tool]):
        for value in STRANGE:
            found = tool.read(as_loaded({**base, key: value}), known)
            assert as_yaml(found, Path("run.yaml")).startswith("# From run.yaml")
            assert all("\n" not in f"{one.theirs}{one.reason}" for one in found.refusals), found.refusals
