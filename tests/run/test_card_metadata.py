"""Front matter of model cards: what the hubs read, for each kind of checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from llmtune.checkpoint import ADAPTER_CONFIG
from llmtune.hub import fetch
from llmtune.run import card_metadata
from llmtune.run.model_card import write_card

LORA, BASE = {"peft_type": "LORA", "r": 8}, {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
SEES = BASE | {"vision_config": {"depth": 2}}
BASE_CARD = """---
license: other
license_name: some-license
license_link: https://example.org/LICENSE
language:
- en
- no
tags: [chat]
pipeline_tag: fill-mask
---
# Base
license: mit
"""
FILES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "adapter": (
        {ADAPTER_CONFIG: LORA}, BASE,
        {"library_name": "peft", "base_model_relation": "adapter", "pipeline_tag": "text-generation",
         "tasks": ["text-generation"], "tags": ["llmtune", "text-generation", "lora"]},
    ),
    "full": (
        {"config.json": BASE}, BASE,
        {"library_name": "transformers", "base_model_relation": "finetune", "pipeline_tag": "text-generation"},
    ),
    "reward": (
        {ADAPTER_CONFIG: LORA | {"task_type": "SEQ_CLS"}}, BASE,
        {"library_name": "peft", "base_model_relation": "adapter", "pipeline_tag": "text-classification",
         "tasks": ["text-classification"], "tags": ["llmtune", "reward-model", "lora"]},
    ),
    "whole reward": (
        {"config.json": BASE | {"architectures": ["Qwen2ForSequenceClassification"]}}, BASE,
        {"library_name": "transformers", "base_model_relation": "finetune", "pipeline_tag": "text-classification"},
    ),
    "vision adapter": (
        {ADAPTER_CONFIG: LORA}, SEES,
        {"library_name": "peft", "base_model_relation": "adapter", "pipeline_tag": "image-text-to-text",
         "tasks": ["visual-question-answering"]},
    ),
    "vision": (
        {"config.json": SEES}, SEES,
        {"library_name": "transformers", "base_model_relation": "finetune", "pipeline_tag": "image-text-to-text"},
    ),
    "quantised": (
        {"config.json": BASE | {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, BASE,
        {"library_name": "transformers", "base_model_relation": "quantized", "pipeline_tag": "text-generation",
         "tags": ["llmtune", "text-generation", "gptq"]},
    ),
    "GGUF": (
        {"model.gguf": {}}, BASE,
        {"library_name": None, "base_model_relation": "quantized", "pipeline_tag": "text-generation",
         "tags": ["llmtune", "text-generation", "gguf"]},
    ),
}  # fmt: skip


def head_of(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)  # what push_to_hub of the client reads
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    plain: dict[str, Any] = yaml.safe_load(found[1])
    assert card.data.to_dict() == plain
    assert ModelCardData(**plain).to_dict() == plain
    return plain


def make(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of org/base in the hub's cache."""
    folder = make(tmp_path / "base", {"README.md": BASE_CARD})
    monkeypatch.setattr(card_metadata, "local_model", lambda name, **options: folder if name == "org/base" else None)
    return folder


SETTINGS = {"model_type": "qwen2.5-7b-instruct", "model_id_or_path": "org/base", "dataset": ["hf::org/rows", "a.jsonl"]}


@pytest.mark.parametrize("kind", FILES)
def test_hubs_read_what_a_checkpoint_is(tmp_path, base, kind):
    files, config, said = FILES[kind]
    (base / "config.json").write_text(json.dumps(config))
    folder = make(tmp_path / "checkpoint", files)
    write_card(folder, folder, SETTINGS)
    head = head_of(folder)
    assert {name: head.get(name) for name in said} == said
    assert head["base_model"] == "org/base"
    assert head["datasets"] == ["org/rows"]
    assert head["frameworks"] == ["Pytorch"]
    stated = {name: head[name] for name in ("license", "license_name", "license_link", "language")}
    link = "https://example.org/LICENSE"
    assert stated == {
        "license": "other",
        "license_name": "some-license",
        "license_link": link,
        "language": ["en", "no"],
    }


@pytest.mark.parametrize(
    "card", ["", "# no front matter", "---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nopen"]
)
def test_nothing_is_invented(tmp_path, base, card):
    (base / "README.md").write_text(card)
    folder = make(tmp_path / "checkpoint", {ADAPTER_CONFIG: LORA})
    write_card(folder, folder, SETTINGS)
    assert not {"license", "language", "license_link"} & set(head_of(folder))


def test_a_link_into_the_repository_of_the_base_is_left_out(tmp_path, base):
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    folder = make(tmp_path / "checkpoint", {ADAPTER_CONFIG: LORA})
    write_card(folder, folder, SETTINGS)
    head = head_of(folder)
    assert head["license_name"] == "mine"
    assert "license_link" not in head


def test_a_base_that_is_a_local_folder_has_no_name_on_a_hub(tmp_path, base):
    folder = make(tmp_path / "checkpoint", {"config.json": BASE})
    write_card(folder, folder, SETTINGS | {"model_id_or_path": str(base)})
    head = head_of(folder)
    assert not {"base_model", "base_model_relation"} & set(head)
    assert head["license"] == "other"
    assert str(tmp_path) not in (folder / "README.md").read_text()


@pytest.mark.parametrize("use_hf", [True, False])
def test_a_model_that_is_not_on_this_machine_asks_no_hub(tmp_path, use_hf):
    assert fetch.local_model("org/none", use_hf=use_hf, cache_dir=str(tmp_path)) is None


def test_a_registered_model_that_sees_says_so_without_its_files(tmp_path):
    folder = make(tmp_path / "checkpoint", {ADAPTER_CONFIG: LORA})
    write_card(folder, folder, {"model_type": "qwen2-vl-2b-instruct"})
    assert head_of(folder)["pipeline_tag"] == "image-text-to-text"
