"""Whole weights: what is missing, misnamed or left over is an error with names, wherever weights are read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from llmtune import InferArguments, SftArguments, get_model_tokenizer, sft
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, ModelError
from llmtune.inference.load import load_engine
from llmtune.models.loading import load_causal_lm
from llmtune.models.tiny import tiny_folder
from llmtune.models.whole_weights import check_names

Tensors = dict[str, torch.Tensor]
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#16"], "max_steps": 2, "save_steps": 1, "save_total_limit": -1,
    "batch_size": 2, "gradient_accumulation_steps": 1, "eval_strategy": "no", "dataset_test_ratio": 0.0,
}  # fmt: skip


def spoiled(folder: Path, spoil: Callable[[Tensors], Tensors] = lambda found: found, **config: Any) -> Path:
    """A copy of the embedded model with other tensors, or another config.json."""
    shutil.copytree(tiny_folder(), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(spoil(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | config))
    return folder


def load(folder: Path, **options: Any) -> Any:
    return get_model_tokenizer("llmtune-tiny", model_id_or_path=str(folder), load_tokenizer=False, **options)[0]


def renamed(found: Tensors) -> Tensors:
    return {name.replace("model.", "decoder."): tensor for name, tensor in found.items()}


def halved(found: Tensors) -> Tensors:
    return dict(list(found.items())[::2])


WRONG: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "all renamed": (renamed, {}, r"51 tensors are missing .* and 50 tensors are left over \(decoder"),
    "half of it": (halved, {}, r"25 tensors are missing \(model\.[a-z_.0-9]+, .* and 22 more\)"),
    "one too few": (lambda found: found, {"num_hidden_layers": 3}, r"12 tensors are left over \(model\.layers\.3\."),
    "one too many": (lambda found: found, {"num_hidden_layers": 5}, r"12 tensors are missing \(model\.layers\.4\."),
    "no head": (lambda found: found, {"tie_word_embeddings": False}, r"1 tensor is missing \(lm_head\.weight\)"),
    "another family": (lambda found: found, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
                       r"12 tensors are left over \(model\.layers\.0\.self_attn\.[kqv]_proj\.bias"),
    "empty": (lambda found: {}, {}, r"51 tensors are missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused_with_counts_and_names(tmp_path, case):
    spoil, config, expected = WRONG[case]
    with pytest.raises(ModelError, match=expected):
        load(spoiled(tmp_path / "model", spoil, **config))


def test_every_command_refuses_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = str(spoiled(tmp_path / "model", halved))
    model = ["--model_type", "llmtune-tiny", "--model_id_or_path", wrong, "--dataset", "tiny-qa#8"]
    assert main(["sft", *model]) == main(["infer", *model]) == main(["eval", *model]) == 1
    assert capsys.readouterr().err.count("25 tensors are missing") == 3


RIGHT: dict[str, Callable[[Tensors], Tensors]] = {
    "the head is tied": lambda found: found,
    "rotary frequencies of old": lambda found: (
        found | {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(16) for n in range(4)}
    ),
    "heads for several tokens": lambda found: found | {"mtp.layers.0.mlp.weight": torch.ones(2)},
    "causal masks": lambda found: found | {"model.layers.0.attn.masked_bias": torch.ones(1)},
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_models_do_without_is_no_error(tmp_path, case):
    ours = load(spoiled(tmp_path / "model", RIGHT[case])).state_dict()
    theirs = load(tiny_folder()).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_layers_of_multi_token_prediction_stand_behind_the_last_one():
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=4, num_nextn_predict_layers=1)
    check_names(Path("model"), [], ["model.layers.4.eh_proj.weight"], config)
    with pytest.raises(ModelError, match=r"1 tensor is left over \(model\.layers\.5\."):
        check_names(Path("model"), [], ["model.layers.5.eh_proj.weight"], config)


def test_a_head_that_is_meant_to_be_new(tmp_path):
    options: dict[str, Any] = {"torch_dtype": torch.float32, "model_kwargs": {"num_labels": 1}, "load_tokenizer": False}
    kind = AutoModelForSequenceClassification
    model, _ = load_causal_lm(str(tiny_folder()), model_class=kind, new_tensors=["score."], **options)
    assert model.score.weight.shape == (1, 192)
    with pytest.raises(ModelError, match=r"1 tensor is missing \(score\.weight\)"):
        load_causal_lm(str(tiny_folder()), model_class=kind, **options)


def test_a_base_without_a_head_of_its_own(tmp_path):
    """Saved from AutoModel: no prefix, no head; it is whole where the head is tied, and only there."""
    for name, tied in (("tied", True), ("untied", False)):
        folder = spoiled(tmp_path / name, tie_word_embeddings=tied)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.model.save_pretrained(folder)
        told = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen2Model"]}
        (folder / "config.json").write_text(json.dumps(told))
    assert torch.equal(load(tmp_path / "tied").lm_head.weight, load(tiny_folder()).lm_head.weight)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load(tmp_path / "untied")


# Adapters


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    options: dict[str, Any] = {"modules_to_save": ["embed_tokens"]}
    return sft(SftArguments(**RUN, **options, output_dir=str(tmp_path_factory.mktemp("run")))).output_dir


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "llmtune-tiny" / made.name))


def spoil_adapter(folder: Path, spoil: Callable[[Tensors], Tensors]) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    (folder / "checkpoint.json").unlink(missing_ok=True)  # as from elsewhere: no list of sizes
    return folder


def without(text: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: tensor for name, tensor in found.items() if text not in name}


ONE_MORE = "1 of its (tensors have no place|layers are missing there)"
SPOILT_ADAPTERS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "half": (halved, r"it lacks \d+ tensors that they need"),
    "renamed": (
        lambda found: {name.replace("layers", "h"): one for name, one in found.items()},
        "have no place|layers are missing there",
    ),
    "without the embedding": (without("embed_tokens"), r"embed_tokens"),
    "one more": (
        lambda found: found | {"base_model.model.x.lora_A.weight": torch.ones(1)},
        "1 of its (tensors have no|layers are missing there)",
    ),
    "empty": (lambda found: {}, "does not fit the model|cannot be read, or belongs to a run"),
}


@pytest.mark.medium
@pytest.mark.parametrize("case", SPOILT_ADAPTERS)
def test_an_adapter_is_whole_wherever_it_is_read(run, tmp_path, case):
    spoil, expected = SPOILT_ADAPTERS[case]
    folder = spoil_adapter(run / "checkpoint-1", spoil)
    with pytest.raises(CheckpointError, match=expected):
        load_engine(InferArguments(ckpt_dir=str(folder)))
    with pytest.raises(CheckpointError, match=expected):
        load_engine(InferArguments(ckpt_dir=str(run / "checkpoint-2")), {"other": InferArguments(ckpt_dir=str(folder))})
    for options in ({"peft_path": str(folder)}, {"resume_from_checkpoint": str(folder)}):
        more: dict[str, Any] = {} if "peft_path" in options else {"modules_to_save": ["embed_tokens"]}
        with pytest.raises(CheckpointError, match=expected):
            sft(SftArguments(**RUN, **options, **more, output_dir=str(tmp_path)))


@pytest.mark.parametrize("case", SPOILT_ADAPTERS)
def test_an_adapter_is_whole_where_it_is_merged(run, case, capsys):
    spoil, expected = SPOILT_ADAPTERS[case]
    folder = spoil_adapter(run / "checkpoint-1", spoil)
    assert main(["export", "--ckpt_dir", str(folder), "--merge_lora", "true"]) == 1
    assert re.search(expected, capsys.readouterr().err)
    assert not folder.with_name("checkpoint-1-merged").exists()


def test_whole_weights_are_whole_when_they_are_resumed(tmp_path):
    full = RUN | {"sft_type": "full", "only_save_model": False, "output_dir": str(tmp_path)}
    checkpoint = sft(SftArguments(**full)).output_dir / "checkpoint-1"
    file = checkpoint / "model.safetensors"
    save_file(halved(load_file(file)), file, metadata={"format": "pt"})
    (checkpoint / "checkpoint.json").unlink()
    with pytest.raises(ModelError, match="25 tensors are missing"):
        sft(SftArguments(**full, resume_from_checkpoint=str(checkpoint)))


@pytest.mark.parametrize("spoil", ["qweight", "scales", "norm.weight"])
def test_a_quantised_checkpoint_is_whole(tmp_path, spoil):
    pytest.importorskip("gptqmodel")
    from ..quantised import quantise_folder

    folder = quantise_folder(tiny_folder(), tmp_path / "gptq", "gptq", 4)
    load(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if name.endswith(spoil))
    save_file({name: one for name, one in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensor is missing|lacks"):
        load(folder)
