"""What a checkpoint folder says is read and written in one file."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import llmtune
from llmtune import checkpoint
from llmtune.errors import CheckpointError

HOME = Path(checkpoint.__file__)
NAMES = {checkpoint.ADAPTER_CONFIG, checkpoint.SETTINGS_FILE, checkpoint.STATE_FILE, checkpoint.SEAL_FILE}
FILES = sorted(Path(llmtune.__file__).parent.rglob("*.py"))


def names_in(source: str) -> set[str]:
    """File names of a checkpoint that are written out as a text of their own, or as the end of a path."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return {text for text in texts if isinstance(text, str) and text.split("/")[-1] in NAMES}


def test_finds_what_it_looks_for():
    assert names_in('open(folder / "default/adapter_config.json")\n"a text on adapter_config.json"') == {
        "default/adapter_config.json"
    }
    assert names_in(HOME.read_text("utf-8")) == NAMES


@pytest.mark.parametrize("file", [file for file in FILES if file != HOME], ids=lambda file: file.stem)
def test_no_other_file_names_the_parts_of_a_checkpoint(file: Path):
    assert names_in(file.read_text("utf-8")) == set()


def test_stage_is_sft_where_none_is_written(tmp_path):
    assert checkpoint.stage_of(tmp_path) == "sft"
    checkpoint.write_settings(tmp_path, {"_stage": "dpo"})
    assert checkpoint.stage_of(tmp_path / ".") == "dpo"


def test_an_adapter_in_default_is_found(tmp_path):
    inner = tmp_path / "default"
    inner.mkdir()
    (inner / checkpoint.ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    assert checkpoint.adapter_folder(tmp_path) == inner
    assert checkpoint.checkpoint_kind(tmp_path) == "lora"
    assert checkpoint.adapter_kind(tmp_path) == "lora"
    assert checkpoint.base_of(tmp_path) == "a/b"


def test_a_folder_without_weights_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="neither adapter_config"):
        checkpoint.checkpoint_kind(tmp_path)


def test_checkpoints_are_ordered_by_step_not_by_name(tmp_path):
    for step in (5, 10, 100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    assert [checkpoint.step_of(path) for path in checkpoint.numbered_checkpoints(tmp_path)] == [5, 10, 20, 100]


def test_a_checkpoint_says_whether_it_is_a_reward_model(tmp_path):
    for name, content, wanted in (
        ("adapter_config.json", {"task_type": "SEQ_CLS"}, True),
        ("adapter_config.json", {"task_type": "CAUSAL_LM"}, False),
        ("config.json", {"architectures": ["Qwen2ForSequenceClassification"]}, True),
        ("config.json", {"architectures": ["Qwen2ForCausalLM"]}, False),
        ("config.json", {}, False),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        assert checkpoint.is_reward(tmp_path) is wanted, content
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError):
        checkpoint.is_reward(tmp_path)
