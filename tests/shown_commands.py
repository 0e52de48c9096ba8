"""Commands that a page shows: find them, and let their parser take them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtune.arguments.parser import parse
from llmtune.arguments.stages import BY_FLAG, LOSSES, stage_arguments
from llmtune.cli.main import COMMANDS, find_command, main
from llmtune.cli.neighbours import ours
from llmtune.cli.stages import spelled, take_stage

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ckpt_dir", "lora_model", "peft_path")
"""Flags that name checkpoints, which have to be there."""

MODELS = (
    "FOLDER",
    "work/merged-pt",
    "work/merged-sft",
    "sft/checkpoint-240",
    "sft/checkpoint-260",
    "sft/checkpoint-80",
)
"""Folders of models that commands name."""

# What stands for something of the reader's, and a value that parses. The rest is taken as it is.
VARIABLES = {
    "MODEL_TYPE": "qwen2.5-7b-instruct",
    "MODEL": "llmtune-tiny",
    "DATASET": "self-intro",
    "CKPT_DIR": "checkpoint",
    "CKPT": "checkpoint",
    "FULL": "checkpoint",
    "DATA": "data",
    "WORK": "work",
    "BASE": "FOLDER",
    "COMMON": "",
    "HERE": "examples/pipeline",
    "LOSS": "grpo",
    "SHOP": "examples/online/tools/shop.py",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def llmtune_lines(shell: str) -> Iterator[str]:
    """Each command with the variables before it."""
    for line in shell.replace("\\\n", " ").splitlines():
        if re.match(r"\s*(?:\w+=\S+ +)*llmtune ", line):
            yield line.strip()


def filled(line: str) -> str:
    """Shell variables by their values; `$(dirname "$0")` by a name; `"$@"` away."""
    line = (
        line.replace('"$@"', "")
        .replace('"${@:2}"', "")
        .replace('"${@:3}"', "")
        .replace('$(dirname "$0")', "here")
        .split(" | ")[0]
        .split(" > ")[0]
    )
    line = re.sub(r'"\$\(newest "[^"]+"\)"', "checkpoint", line)
    line = re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}|\$(\w+)", _value, line)
    return re.sub(r"\s#.*", "", line)


def _value(found: re.Match[str]) -> str:
    """What stands for a variable, else its own default, which may name another."""
    name, kind, default = found[1] or found[4], found[2], found[3]
    return filled(default) if kind == "-" and name not in VARIABLES else VARIABLES[name]


def is_taken(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as far as its flags are read, in a folder that has what it names."""
    monkeypatch.chdir(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "run.yaml").write_text("model_type: llmtune-tiny\ndataset: [tiny-qa, my.jsonl]\n", encoding="utf-8")
    (folder / "lf_run.yaml").write_text(
        "model_name_or_path: llmtune-tiny\nstage: sft\ncutoff_len: 64\ndataset: tiny-qa\n"
    )
    (folder / "ax_run.yaml").write_text("base_model: llmtune-tiny\nsequence_len: 64\ndatasets: [{path: tiny-qa}]\n")
    (folder / "my_rewards.py").write_text(
        "def near(completions):\n    return [0.0 for _ in completions]\n\n\nfn = near\n"
    )
    (folder / "my.jsonl").write_text('{"query": "a", "response": "b"}\n', encoding="utf-8")
    for name in MODELS:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    words = shlex.split(filled(line))
    while words[0] != "llmtune":
        name, _, value = words.pop(0).partition("=")
        if name == "LLMTUNE_API_KEY":
            monkeypatch.setenv(name, value)
    _, command, *flags = words[:1] + ours(words[1:])
    if command in COMMANDS and not hasattr(find_command(command), "ARGUMENTS"):
        assert main([command, *flags]) == 0
        return
    if command == "launch":
        assert main([command, "--dry_run", *flags]) == 0
        return
    if command == "runs":
        own = find_command(command)
        assert set(flags[:1]) <= {*own.OF_ALL, *own.ACTIONS, "--json"}
        flags = [word for word in flags if word in ("--follow", "true", "--json")]
    if command in {**BY_FLAG, **LOSSES}:
        command, flags = spelled(command, flags)
    module = find_command(command)
    arguments = module.ARGUMENTS
    if command in ("check", "plan") and not flags[0].startswith("-") and not flags[0].endswith(".yaml"):
        stage, flags = take_stage(flags)
        arguments = stage_arguments(str(stage))
    if command == "check":
        flags, _ = module.take_template_switch(flags)
    model_type = flags[flags.index("--model_type") + 1] if "--model_type" in flags else "llmtune-tiny"
    for checkpoint in _folders(flags):
        _make_checkpoint(folder / checkpoint, model_type)
        if "--all_checkpoints" in flags:
            _make_checkpoint(folder / checkpoint / "checkpoint-5", model_type)
    parse(arguments, flags, command=command)


def _folders(flags: list[str]) -> Iterator[str]:
    flag = ""
    for word in flags:
        if word.startswith("--"):
            flag = word[2:]
        elif flag in FOLDERS:
            yield word
        elif flag == "adapters":
            yield word.partition("=")[2]


def _make_checkpoint(folder: Path, model_type: str) -> None:
    """One that says what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    settings = {"model_type": model_type, "sft_type": "lora", "dataset": ["tiny-qa"]}
    (folder / "sft_args.json").write_text(json.dumps(settings), encoding="utf-8")
