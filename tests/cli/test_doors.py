"""At the door: what guides and other tools write is understood, and what cannot be is told in one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, get_template, sft
from llmtune.arguments.parser import parse
from llmtune.cli.main import USAGE, main
from llmtune.distributed.launch import check_launch, planned_processes
from llmtune.errors import OutputError, UsageError
from llmtune.inference.engine import peft_name
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.tiny import tiny_folder
from llmtune.templates.info import TEMPLATE_MAPPING

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8"]
SECONDS = 120


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(*words: str) -> SftArguments:
    return parse(SftArguments, list(words), command="sft")


# What guides write


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dataset_name", "shibing624/medical", "--dataset_config_name", "finetune"],
         ["hf::shibing624/medical:finetune"]),
        (["--dataset_name", "shibing624/medical"], ["hf::shibing624/medical"]),
        (["--dataset_name", "alpaca-zh"], ["alpaca-zh"]),
    ],
)  # fmt: skip
def test_a_dataset_by_name_and_part(words, expected):
    assert told("--model_type", "llmtune-tiny", *words).dataset == expected


def test_a_part_without_a_dataset():
    with pytest.raises(UsageError, match="give its dataset with --dataset_name"):
        told("--dataset_config_name", "finetune")


@pytest.mark.parametrize("flag", ["--lazy_preprocess", "--lazy_tokenize"])
def test_lazy_flags_say_what_is_done_instead(flag, capsys):
    told("--model_type", "llmtune-tiny", flag, "True")
    assert "--streaming true encodes them during training" in capsys.readouterr().err


def test_nothing_that_exists_is_said_to_come_later():
    text = (ROOT / "llmtune/arguments/aliases.py").read_text()
    assert re.findall(r".*later version.*", text) == re.findall(r".*only stage sft is available.*", text)


@pytest.mark.parametrize("name", ["llama", "bloom", "chatglm", "baichuan", "qwen", "internlm"])
def test_a_class_as_the_model_type(name, capsys):
    folder = Path(shutil.copytree(tiny_folder(), "Qwen2-0.5B-Instruct"))
    args = told("--model_type", name, "--model_id_or_path", str(folder), "--dataset", "tiny-qa")
    assert args.model_type not in (None, name)
    assert "read from the model's files" in capsys.readouterr().err
    with pytest.raises(UsageError, match=f"--model_type {name} is a model family: give --model_id_or_path"):
        told("--model_type", name)


@pytest.mark.parametrize(("name", "key"), [("vicuna", "vicuna"), ("alpaca", "alpaca"), ("qwen", "qwen2"),
                                           ("openbuddy-llama", "openbuddy")])  # fmt: skip
def test_templates_of_the_guides(name, key):
    assert told("--model_type", "llmtune-tiny", "--template_name", name).template_type == key
    assert TEMPLATE_MAPPING.canonical(name) == key


def test_what_vicuna_and_alpaca_write():
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    tokenizer.bos_token = "<|endoftext|>"
    row = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
                        {"role": "assistant", "content": "d"}]}  # fmt: skip
    texts = {key: get_template(key, tokenizer).render(row) for key in ("vicuna", "alpaca")}
    plain = {key: text.replace("<|endoftext|>", "").replace("<|im_end|>", "</s>") for key, text in texts.items()}
    assert plain["vicuna"] == "S USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>"
    assert plain["alpaca"] == (
        "S\n\n### Instruction:\na\n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\nd</s>"
    )


def test_infer_and_eval_take_each_others_flags(capsys):
    for command in ("infer", "eval"):
        for flag in ("--num_samples", "--show_dataset_sample", "--eval_batch_size", "--infer_batch_size"):
            words = [command, "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8", "--dry_run", "true", flag, "3"]
            assert main(words) == 0, capsys.readouterr().err
        for flag in ("--output_dir", "--result_dir"):
            words = [command, "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#8", "--dry_run", "true", flag, "x"]
            assert main(words) == 0, capsys.readouterr().err


# The folder of a run


def test_a_run_at_the_root_of_its_output_dir(capsys):
    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny", "dataset": ["tiny-qa#8"], "max_steps": 2, "save_steps": 1, "batch_size": 1,
        "gradient_accumulation_steps": 1, "eval_strategy": "no", "report_to": ["none"], "output_dir": "mine",
        "output_dir_flat": True,
    }  # fmt: skip
    run = sft(SftArguments(**settings)).output_dir
    assert run == Path("mine").resolve()
    assert (run / "checkpoint-2/adapter_model.safetensors").is_file()
    with pytest.raises(OutputError, match="already has a run"):
        sft(SftArguments(**settings))
    more = settings | {"max_steps": 3, "resume_from_checkpoint": "last"}
    assert sft(SftArguments(**more)).last_checkpoint == run / "checkpoint-3"
    assert told("--model_type", "llmtune-tiny", "--add_version", "false").output_dir_flat


# Commands that are printed


def printed(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [
        " ".join(line.split()) for line in lines if re.match(r"\s*llmtune (sft|infer) .*--(dataset|ckpt_dir)", line)
    ]


def of_readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("The same in Python")[0]


def test_the_help_prints_the_commands_of_the_readme_but_for_the_names():
    """So one run of them, below, stands for both."""
    (help_train, help_ask), (train, ask) = printed(USAGE)[:2], printed(of_readme())[:2]
    names = '--model_name 小调 Tuny --model_author 本机的主人 "the owner of this machine" '
    assert help_train == train.replace(names, "")
    assert shlex.split(help_ask, comments=True) == shlex.split(ask)


@pytest.mark.medium
def test_the_command_of_the_help_trains():
    """For two steps: only how long it trains is not that of the help."""
    train, ask = printed(USAGE)[:2]
    assert main([*shlex.split(train)[1:], "--max_steps", "2"]) == 0
    assert len(list(Path().glob(shlex.split(ask)[3]))) == 1


@pytest.mark.slow
def test_what_the_readme_prints_runs_and_answers_within_two_minutes():
    train, ask = printed(of_readme())[:2]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)  # as a newcomer's shell
    environment["OMP_WAIT_POLICY"] = "passive"  # else its threads spin for the cores that other tests are using
    started = os.times()
    assert subprocess.run(["bash", "-c", train], env=environment, capture_output=True, check=False).returncode == 0
    found = subprocess.run(
        ["bash", "-c", ask], env=environment, input="Who are you?\nexit\n", capture_output=True, text=True, check=False
    )
    assert "I am Tuny" in found.stdout, found.stdout + found.stderr
    ended = os.times()
    used = ended.children_user + ended.children_system - started.children_user - started.children_system
    assert used < 2 * SECONDS, "more than two cores can do in two minutes"


def test_printed_commands_are_quoted(capsys):
    settings: dict[str, Any] = {
        "model_type": "llmtune-tiny", "dataset": ["tiny-qa#8"], "max_steps": 1, "batch_size": 1,
        "gradient_accumulation_steps": 1, "eval_strategy": "no", "report_to": ["none"], "output_dir": "my runs",
    }  # fmt: skip
    result = sft(SftArguments(**settings))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Chat with it:")]
    assert shlex.split(line.partition(":")[2])[3] == str(result.last_checkpoint)


# One line for each error


@pytest.mark.parametrize(("name", "text"), [("NNODES", "zwei"), ("NODE_RANK", "-1"), ("MASTER_PORT", "http")])
def test_torchrun_variables_that_are_not_numbers_are_refused(name, text):
    with pytest.raises(UsageError, match=f"{name}={text} in the environment is not a number"):
        check_launch(2, {name: text})
    assert planned_processes(2, {name: text}) in (None, 2)


def test_a_process_for_each_of_no_gpus():
    with pytest.raises(UsageError, match="--nproc 0 starts one process per GPU, and there is no GPU"):
        check_launch(0, {})


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
CONFIGS = {
    "a bomb": BOMB, "nested": "dataset: [[a], [b]]\n", "deep": "[" * 5000, "open": "dataset: [a\n", "a list": "- a\n",
    "nothing": "", "a table in a table": "train_args: {a: {b: c}}\n", "huge": "# " + "x" * 2_000_000,
    "control characters": "a: \x00\n",
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_config_files_that_are_none(case, capsys):
    Path("run.yaml").write_text(CONFIGS[case])
    started = time.process_time()
    assert main(["sft", "--config", "run.yaml"]) == 2
    assert time.process_time() - started < 5
    said = capsys.readouterr().err
    assert len(said) < 600
    assert "run.yaml" in said


def test_config_paths_that_are_no_files(capsys):
    os.mkfifo("pipe")
    Path("folder").mkdir()
    for path in ("pipe", "folder", "nowhere", "x" * 300):
        assert main(["sft", "--config", path]) == 2
        assert "Traceback" not in capsys.readouterr().err


LONG = "x" * 300


@pytest.mark.parametrize("flag", ["--dataset", "--val_dataset", "--model_id_or_path", "--output_dir", "--peft_path",
                                  "--resume_from_checkpoint", "--custom_register_path", "--deepspeed_config_path",
                                  "--tokenizer_id_or_path", "--cache_dir", "--model_type", "--ckpt_dir"])  # fmt: skip
def test_names_too_long_for_a_path_are_told_in_a_line(flag, capsys):
    command = "infer" if flag == "--ckpt_dir" else "sft"
    rest = [] if flag == "--model_type" else ["--model_type", "llmtune-tiny"]
    rest += [] if flag == "--dataset" or command == "infer" else ["--dataset", "tiny-qa#8"]
    status = main([command, *rest, *(["--max_steps", "1"] if command == "sft" else []), flag, LONG])
    said = capsys.readouterr().err
    if flag != "--cache_dir":  # which is not opened where nothing is fetched
        assert status in (1, 2)
        assert "Add --debug" not in said, said


def test_a_folder_without_a_tokenizer(capsys):
    folder = Path(shutil.copytree(tiny_folder(), "model"))
    for file in folder.glob("token*"):
        file.unlink()
    assert main(["sft", *TINY, "--model_id_or_path", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "no tokenizer" in said
    assert "--tokenizer_id_or_path" in said


@pytest.mark.parametrize("text", ["a=[", "a=*x", "a=" + "[" * 5000])
def test_train_args_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--train_args a: cannot parse its value"):
        told("--model_type", "llmtune-tiny", "--train_args", text)


def test_adapters_names_may_hold_dots():
    names = ["v1.5", "v1_5", "v1_dot_5", "v1__5", "a.b.c", "a_b"]
    assert len({peft_name(name) for name in names}) == len(names)
    assert not any("." in peft_name(name) for name in names)


def test_an_adapter_with_a_dot_in_its_name_answers():
    from llmtune import InferArguments
    from llmtune.inference.load import load_engine

    made = sft(SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa#8"], max_steps=1, batch_size=1, gradient_accumulation_steps=1,
        eval_strategy="no", report_to=["none"],
    )).last_checkpoint  # fmt: skip
    engine = load_engine(InferArguments(ckpt_dir=str(made)), {"v1.5": InferArguments(ckpt_dir=str(made))})
    with engine.adapters.use("v1.5"):
        assert engine.model.active_adapters == [peft_name("v1.5")]


@pytest.mark.medium
def test_results_hold_the_system_prompt_that_was_used():
    from llmtune import InferArguments, infer

    options: dict[str, Any] = {"model_type": "llmtune-tiny", "dataset": ["tiny-qa#8"], "dataset_test_ratio": 0.5,
                               "show_dataset_sample": 1, "max_new_tokens": 1}  # fmt: skip
    (result,) = infer(InferArguments(**options, system="Be brief."))
    assert result["system"] == "Be brief."
    (result,) = infer(InferArguments(**options))
    assert result["system"] == TEMPLATE_MAPPING["chatml"].default_system


def test_eval_names_what_it_took_from_the_checkpoint(capsys):
    made = sft(SftArguments(
        model_type="llmtune-tiny", dataset=["tiny-qa#8"], max_steps=1, batch_size=1, gradient_accumulation_steps=1,
        eval_strategy="no", report_to=["none"], system="Be brief.",
    )).last_checkpoint  # fmt: skip
    capsys.readouterr()
    assert main(["eval", "--ckpt_dir", str(made), "--num_samples", "1", "--metrics", "loss", "--dataset", "tiny-qa#8",
                 "--dataset_test_ratio", "0.5"]) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "model_type llmtune-tiny" in said.err
    assert "None" not in said.err
    assert json.loads(next(Path(made).glob("eval/summary.json")).read_text())["checkpoint-1"]["token_acc"] <= 1
