"""A checkpoint from elsewhere runs no code and opens no path of this machine unasked, whichever command reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtune import InferArguments, SftArguments, sft
from llmtune.arguments.infer import INHERITED, INHERITED_DATA
from llmtune.arguments.inheritance import PATHS
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.utils.seal import is_own

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "max_steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1,
    "dataset_test_ratio": 0.0, "eval_strategy": "no", "report_to": ["none"],
}  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "infer": ["infer", "--show_dataset_sample", "1", "--max_new_tokens", "1"],
    "infer, dry": ["infer", "--dry_run", "true"],
    "eval": ["eval", "--num_samples", "1", "--max_new_tokens", "1"],
    "serve, dry": ["serve", "--dry_run", "true"],
    "serve": ["serve"],
    "web": ["web"],
    "export": ["export", "--merge_lora", "true"],
    "merge": ["merge"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of this user's own, on a base and data of this machine."""
    place = tmp_path_factory.mktemp("made")
    base = shutil.copytree(tiny_folder(), place / "base")
    (place / "rows.jsonl").write_text('{"query": "a", "response": "b"}\n' * 4)
    data = {"dataset": [str(place / "rows.jsonl")], "model_id_or_path": str(base)}
    return sft(SftArguments(**RUN, **data, output_dir=str(place / "output"))).last_checkpoint


@pytest.fixture
def strange(made, tmp_path):
    """The checkpoint with other words in its settings, alone or beside those of its run."""

    def change(*, parent: bool = False, **words: Any) -> Path:
        run = tmp_path / "downloaded"
        checkpoint = Path(shutil.copytree(made, run / made.name))
        saved = json.loads((checkpoint / "sft_args.json").read_text())
        (checkpoint / "sft_args.json").unlink()
        place = run if parent else checkpoint
        (place / "sft_args.json").write_text(json.dumps(saved | words))
        return checkpoint

    return change


@pytest.fixture
def trap(tmp_path) -> tuple[Path, Path]:
    """A Python file, and the mark that it leaves when it runs."""
    file, mark = tmp_path / "mine.py", tmp_path / "it ran"
    file.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    return file, mark


@pytest.mark.parametrize("parent", [False, True], ids=["checkpoint", "run"])
@pytest.mark.parametrize("command", COMMANDS)
def test_its_code_does_not_run(strange, trap, command, parent, capsys, monkeypatch):
    file, mark = trap
    folder = strange(parent=parent, custom_register_path=str(file))
    assert main([*COMMANDS[command], "--ckpt_dir", str(folder)]) == 2
    assert f"If you trust it: --custom_register_path {file}." in capsys.readouterr().err
    assert not mark.exists()


def test_what_this_command_line_names_is_asked_for(strange, trap):
    file, mark = trap
    folder = strange(custom_register_path=str(file))
    paths = {"model_id_or_path": str(tiny_folder()), "eval_human": True}
    InferArguments(ckpt_dir=str(folder), custom_register_path=str(file), **paths)
    assert mark.exists()


def test_ones_own_checkpoint_opens_its_base_and_data(made, tmp_path):
    assert is_own(json.loads((made / "sft_args.json").read_text()))
    moved = shutil.copytree(made, tmp_path / "elsewhere")
    assert InferArguments(ckpt_dir=str(moved)).dataset


CHANGES: dict[str, Any] = {
    "model_id_or_path": str(tiny_folder),
    "tokenizer_id_or_path": "~/tokenizer",
    "cache_dir": "/var/cache",
    "dataset": ["tiny-qa", "/etc/hostname"],
    "val_dataset": ["../rows.jsonl#5"],
}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("command", ["infer", "infer, dry", "eval"])
def test_no_path_of_this_machine_is_opened(strange, name, command, capsys):
    others = dict.fromkeys(PATHS) | {"dataset": ["tiny-qa"], "val_dataset": []}
    value = str(tiny_folder()) if name == "model_id_or_path" else CHANGES[name]
    folder = strange(**others | {name: value})
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert main([*COMMANDS[command], "--ckpt_dir", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "is not opened unless you ask for it" in said
    assert f"--{name} " in said


def test_the_walk_knows_every_inherited_value():
    """Whoever lets another value be inherited says here whether it can name a path."""
    harmless = {
        *(
            "model_type",
            "model_revision",
            "template_type",
            "tool_format",
            "dtype",
            "system",
            "use_hf",
            "chat_template_kwargs",
        ),
        *("quantization_bit", "bnb_4bit_comp_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
        *("quant_method", "max_length", "max_pixels", "special_tokens_in_text", "dataset_test_ratio", "dataset_seed"),
        *("train_dataset_sample", "val_dataset_sample", "model_name", "model_author"),
    }
    assert set(INHERITED) | set(INHERITED_DATA) == harmless | set(PATHS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_length", "long"), ("dataset", "tiny-qa"), ("system", ["a"]), ("use_hf", "yes"), ("dtype", "int8"),
     ("quantization_bit", 3), ("model_type", {"a": 1})],
)  # fmt: skip
def test_settings_of_another_type_are_named(strange, name, value):
    folder = strange(**dict.fromkeys(PATHS) | {"dataset": ["tiny-qa"], name: value})
    with pytest.raises(CheckpointError, match=f"has an invalid value of {name}: "):
        InferArguments(ckpt_dir=str(folder))


@pytest.mark.parametrize("text", ["", "[]", "null", "3", '{"a": ', '"x"', "[" * 100_000], ids=lambda text: text[:9])
def test_settings_that_are_none(made, tmp_path, text):
    folder = Path(shutil.copytree(made, tmp_path / "checkpoint"))
    (folder / "sft_args.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"sft_args\.json .*--load_args_from_ckpt_dir false"):
        InferArguments(ckpt_dir=str(folder))


def test_the_base_that_an_adapter_names_is_not_opened(made, tmp_path, capsys):
    folder = Path(shutil.copytree(made, tmp_path / "adapter"))
    (folder / "sft_args.json").unlink()
    assert main(["merge", "--ckpt_dir", str(folder)]) == 2
    assert "--model_id_or_path" in capsys.readouterr().err


def test_merging_keeps_ones_own_ones_own(made, tmp_path):
    target = tmp_path / "merged"
    assert main(["export", "--ckpt_dir", str(made), "--merge_lora", "true", "--output_dir", str(target)]) in (0, 1)
    if target.exists():
        assert is_own(json.loads((target / "sft_args.json").read_text()))


def test_resuming_is_no_way_around(strange, tmp_path):
    folder = strange(dataset=["/etc/hostname"])
    (folder / "checkpoint.json").unlink()
    with pytest.raises(UsageError, match=r"names the local path /"):
        sft(SftArguments(resume_from_checkpoint=str(folder), max_steps=2))
