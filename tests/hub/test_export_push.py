"""What `llmtune export` and `llmtune merge` push: the folder, with a model card."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from llmtune.cli.main import main
from llmtune.models.tiny import tiny_folder


@pytest.fixture
def adapter(environment):
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder()), LoraConfig(target_modules=["q_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = environment / "checkpoint-7"
    tuned.save_pretrained(str(folder))
    args = {"model_type": "llmtune-tiny", "template_type": "chatml", "dataset": ["tiny-qa"], "lora_rank": 8}
    (folder / "sft_args.json").write_text(json.dumps(args | {"output_dir": str(environment), "sft_type": "lora"}))
    return folder


@pytest.mark.medium
@pytest.mark.parametrize("use_hf", [False, True], ids=["ModelScope", "HuggingFace"])
def test_a_merged_model_is_pushed_without_local_paths(hub, adapter, use_hf):
    hub.token = "secret"
    flags = ["--ckpt_dir", str(adapter), "--hub_token", "secret", "--use_hf", str(use_hf).lower()]
    assert main(["export", *flags, "--merge_lora", "true", "--push_to_hub", "true", "--hub_model_id", "mine"]) == 0
    pushed = hub.repos["model", "somebody/mine"]
    merged = adapter.with_name("checkpoint-7-merged")
    assert pushed["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    card = pushed["README.md"].decode()
    assert "| base model | llmtune-tiny |" in card
    assert "secret" not in card
    assert str(adapter.parent) not in card


def test_a_checkpoint_as_it_is_is_pushed_with_a_card(hub, adapter):
    hub.token = "secret"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    flags = ["--ckpt_dir", str(adapter), "--hub_token", "secret", "--push_to_hub", "true", "--hub_model_id", "mine"]
    assert main(["export", *flags]) == 0
    pushed = hub.repos["model", "somebody/mine"]
    card = pushed["README.md"].decode()
    assert "| base model | llmtune-tiny |" in card
    assert "lora_rank" in card
    assert pushed["adapter_model.safetensors"] == before["adapter_model.safetensors"]
    assert str(adapter.parent).encode() not in b"".join(pushed.values())
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert [path.name for path in adapter.parent.iterdir() if "card" in path.name] == []


def test_a_refused_token_stops_before_merging(hub, adapter, capsys):
    hub.token = "secret"
    flags = ["--ckpt_dir", str(adapter), "--hub_token", "wrong", "--merge_lora", "true", "--push_to_hub", "true"]
    assert main(["export", *flags]) == 1
    assert "HTTP 401" in capsys.readouterr().err
    assert not adapter.with_name("checkpoint-7-merged").exists()


@pytest.mark.medium
def test_the_flags_of_medicalgpt(hub, adapter):
    hub.token = "secret"
    flags = ["--lora_model", str(adapter), "--hf_hub_model_id", "mine", "--hf_hub_token", "secret"]
    assert main(["merge", *flags]) == 0
    assert "model.safetensors" in hub.repos["model", "somebody/mine"]
