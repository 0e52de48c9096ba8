"""Commands for bug reports, editors and shells: env, schema, completion."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from llmtune.arguments.aliases import ALIASES
from llmtune.arguments.schema import stage_schema
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.cli import env
from llmtune.cli.completion import SHELLS, all_words
from llmtune.cli.main import COMMANDS, main
from llmtune.cli.neighbours import NEIGHBOURS
from llmtune.utils import logging

TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "_said", set())


def out(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    found: str = capsys.readouterr().out
    return found


# Environment


SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnop", "MODELSCOPE_API_TOKEN": "12345", "WANDB_API_KEY": "0123456789",
    "LLMTUNE_HIDDEN_API_KEY": "sk-hidden", "HTTPS_PROXY": "http://user:pw@proxy:80", "HF_ENDPOINT": "https://u:p@hub",
    "SLURM_JOB_NAME": "secret-project", "CUDA_VISIBLE_DEVICES": "GPU-6f2d-uuid", "AWS_SECRET_ACCESS_KEY": "aws",
    "WANDB_PASSWORD": "1234", "HF_HOME": "/home/somebody/hf", "MASTER_ADDR": "node17.corp",
}  # fmt: skip
SHOWN = {"OMP_NUM_THREADS": "2", "USE_HF": "1", "NCCL_P2P_DISABLE": "true", "NCCL_IB_HCA": "0,1"}


def test_env_names_variables_and_no_secret(capsys, monkeypatch):
    for name, value in {**SECRETS, **SHOWN}.items():
        monkeypatch.setenv(name, value)
    text = out(capsys, "env", "--no_torch")
    found = json.loads(out(capsys, "env", "--no_torch", "--json", "true"))
    for name, value in SECRETS.items():
        assert value not in text
        assert value not in json.dumps(found)
        if not name.startswith(("LLMTUNE_HIDDEN", "AWS")):
            assert found["environment"][name] == "set"
    assert {name: found["environment"][name] for name in SHOWN} == SHOWN
    assert "LLMTUNE_HIDDEN" not in text
    assert "AWS" not in text  # not ours to name
    assert found["packages"]["torch"]
    assert found["python"]
    assert str(Path.home()) not in text


def test_env_is_a_report_where_torch_does_not_import(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (line,) = env.facts()["accelerators"]
    assert line.startswith("torch does not import: ")


# Schema


@pytest.mark.parametrize("stage", STAGES)
def test_the_schema_of_a_stage_is_valid_and_takes_its_own_arguments(stage):
    schema = stage_schema(stage)
    jsonschema.Draft7Validator.check_schema(schema)
    check = jsonschema.Draft7Validator(schema)
    data = {"dpo": "tiny-pairs", "rm": "tiny-pairs", "kto": "tiny-labels"}.get(stage, "tiny-qa")
    extra = {"rewards": ["accuracy"]} if stage in ("grpo", "ppo") else {}
    args = stage_arguments(stage)(model_type="llmtune-tiny", dataset=[data], **extra)
    assert list(check.iter_errors({"stage": stage, "_note": 1, **dataclasses.asdict(args)})) == []
    fields = [field.name for field in dataclasses.fields(args) if field.init]
    assert set(fields) <= set(schema["properties"])
    assert all(schema["properties"][name]["description"] for name in fields)


@pytest.mark.parametrize("text", ["lora_rang: 8", "lora_rank: many", "sft_type: half", "seed: -1.5", "stage: dpo",
                                  "dataset_test_ratio: 2", "packing: perhaps", "batch_size: 0"])  # fmt: skip
def test_the_schema_refuses_what_the_parser_refuses(text, capsys):
    value = yaml.safe_load(text)
    assert list(jsonschema.Draft7Validator(stage_schema("sft")).iter_errors(value))
    Path("run.yaml").write_text(text)
    assert main(["sft", *TINY, "--config", "run.yaml", "--dry_run", "true"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("text", ["dataset: a", "dataset: [a, b#10]", "train_args: {adam_beta1: 1}", "lora_r: 8",
                                  "eval_strategy: no", "gradient_checkpointing: true", "max_steps: -1",
                                  "use_hf: null", "do_train: true", "use_lora: true"])  # fmt: skip
def test_the_schema_takes_what_the_parser_takes(text):
    assert list(jsonschema.Draft7Validator(stage_schema("sft")).iter_errors(yaml.safe_load(text))) == []


def test_the_schema_has_every_spelling(capsys):
    found = json.loads(out(capsys, "schema", "sft"))
    assert set(ALIASES) - set(found["properties"]) <= {
        name for name, alias in ALIASES.items() if alias.target not in found["properties"]
    }
    assert main(["schema", "stf"]) == 1 or main(["schema", "stf"]) == 2
    assert "Did you mean 'sft'" in capsys.readouterr().err


# Completion


def complete(shell: str, script: Path, *words: str) -> list[str]:
    """What a shell offers after `words`, the last of which is being typed."""
    line = " ".join(words)
    calls = {
        "bash": f"source {script}; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _llmtune; "
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "fish": f"source {script}; complete -C {json.dumps(line.replace(chr(39) * 2, ''))}",
    }
    done = subprocess.run([shell, "-c", calls[shell]], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return [text.partition("\t")[0] for text in done.stdout.split("\n") if text]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    words = list(all_words())
    for shell, make in SHELLS.items():
        (folder / shell).write_text(make(words))
    return {shell: folder / shell for shell in SHELLS}


CASES = [
    (("llmtune", "sf"), ["sft"]),
    (("llmtune", "cha"), ["chat"]),
    (("llmtune", "sft", "--lora_ra"), ["--lora_rank"]),
    (("llmtune", "sft", "--sft_type", "l"), ["lora"]),
    (("llmtune", "dpo", "--packing", "t"), ["true"]),
    (("llmtune", "check", "kt"), ["kto"]),
    (("llmtune", "orpo", "--label_sm"), ["--label_smoothing"]),
    (("llmtune", "kto", "--dataset", "tiny-lab"), ["tiny-labels"]),
    (("llmtune", "list", "tem"), ["templates"]),
    (("llmtune", "show", "tool_f"), ["tool_format"]),
    (("llmtune", "completion", "z"), ["zsh"]),
]


@pytest.mark.parametrize(("words", "expected"), CASES)
@pytest.mark.parametrize("shell", [
    shell if shutil.which(shell) else pytest.param(shell, marks=pytest.mark.skip(f"no {shell} here"))
    for shell in ("bash", "fish")
])  # fmt: skip
def test_a_real_shell_completes(shell, words, expected, scripts):
    assert complete(shell, scripts[shell], *words) == expected


def test_bash_leaves_paths_to_the_shell(scripts):
    assert complete("bash", scripts["bash"], "llmtune", "sft", "--output_dir", "x") == []
    text = scripts["bash"].read_text()
    assert "complete -o bashdefault -o default -F _llmtune llmtune" in text


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script_and_completes(scripts, tmp_path):
    assert subprocess.run(["zsh", "-n", str(scripts["zsh"])], capture_output=True).stderr == b""
    run = (
        "compdef() { : }; _describe() { print -l -- ${found%%:*} }; compadd() { print -l -- $found }; _files() { : }; "
        f"source {scripts['zsh']}; words=(llmtune sft --sft_type ''); CURRENT=4; PREFIX=''; _llmtune"
    )
    done = subprocess.run(["zsh", "-f", "-c", run], capture_output=True, text=True)
    assert done.stdout.split() == ["lora", "full", "adalora", "ia3", "vera"], done.stderr


def test_completion_names_every_command_and_flag():
    found = {one.command: one for one in all_words()}
    assert {*COMMANDS, *NEIGHBOURS, "train", "orpo", "rloo"} <= set(found)
    for stage in STAGES:
        flags = {flag.name for flag in found[stage].flags}
        assert {f"--{field.name}" for field in dataclasses.fields(stage_arguments(stage)) if field.init} <= flags


@pytest.mark.parametrize(
    "argv", [["completion"], ["completion", "tcsh"], ["schema"], ["convert"], ["completion", "--x"]]
)
def test_a_missing_word_is_asked_for(argv, capsys):
    assert main(argv) == 2
    assert "usage: llmtune" in capsys.readouterr().err
