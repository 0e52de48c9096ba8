"""A merged reward model is a folder that plain transformers loads, with the scores of base and adapter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from llmtune import ExportArguments, InferArguments, RmArguments, export, rm
from llmtune.checkpoint import checkpoint_kind, is_reward
from llmtune.errors import CheckpointError, UsageError
from llmtune.inference.load import load_scorer
from llmtune.merging import merge as merging
from llmtune.merging.merge import merge_checkpoint
from llmtune.merging.weights import Unstreamable
from llmtune.models.score import load_reward_model
from llmtune.models.tiny import tiny_folder
from llmtune.run.model_card import write_card
from llmtune.types import Answer, Comparison, Conversation, Message

EXACT = 1e-5
"""Of scores around 1 in fp32: rounding of the merged weights."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    """A base with an LM head of its own and no padding token in its config.json, as many have."""
    folder = tmp_path_factory.mktemp("base") / "model"
    folder.mkdir()
    for one in Path(tiny_folder()).iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False, "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["tied", "untied"])
def rewards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    options: dict[str, Any] = {} if request.param == "tied" else {"model_id_or_path": str(base)}
    made = rm(
        RmArguments(
            model_type="llmtune-tiny", dataset=["tiny-pairs#24"], dataset_test_ratio=0, batch_size=4, max_steps=4,
            gradient_accumulation_steps=1, learning_rate=5e-3, lora_target_modules=["ALL"], report_to=["none"],
            output_dir=str(tmp_path_factory.mktemp("rewards")), **options,
        )
    )  # fmt: skip
    assert made.last_checkpoint is not None
    return made.last_checkpoint


def arguments(folder: Path, **options: Any) -> InferArguments:
    return InferArguments(ckpt_dir=str(folder), eval_human=True, **options)


def scores_of(model: Any) -> torch.Tensor:
    ids = torch.randint(6, 2000, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[:, 0].float()


@pytest.mark.medium
@pytest.mark.parametrize("way", ["streamed", "in memory"])
def test_plain_transformers_reads_the_same_scores_from_a_merged_folder(rewards, way, tmp_path, monkeypatch, capsys):
    if way == "in memory":

        def refuse(*_: Any, **__: Any) -> None:
            raise Unstreamable("the test wants it")

        monkeypatch.setattr(merging, "build_meta_model", refuse)
    folder = merge_checkpoint(arguments(rewards), tmp_path / "merged")
    err = capsys.readouterr().err
    assert ("Merging in memory" in err) is (way == "in memory")
    assert re.search(r"hidden states and scores differ by \S+e-0[5-9] of the largest one", err)
    plain = load_reward_model(rewards)
    merged, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(scores_of(merged), scores_of(plain), rtol=EXACT, atol=EXACT)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert merged.config.num_labels == 1
    assert merged.config.pad_token_id == plain.config.pad_token_id is not None
    assert checkpoint_kind(folder) == "full"
    assert is_reward(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    row = Comparison(Conversation((Message("user", "1+1?"),)), (Answer((Message("assistant", "2", loss=True),)),))
    both = []
    for one in (rewards, folder):
        scorer = load_scorer(arguments(one))
        both.append(scorer.scores_of(scorer.encode([row]))[0][0])
    assert both[0] == pytest.approx(both[1], abs=EXACT)


@pytest.mark.medium
@pytest.mark.parametrize("rewards", ["untied"], indirect=True)
@pytest.mark.parametrize("asked", ["of the base", "bf16"])
def test_the_head_has_the_dtype_of_the_other_weights(rewards, base, asked, tmp_path):
    options: dict[str, Any] = {"dtype": "bf16"}
    if asked == "of the base":
        half = tmp_path / "half"
        half.mkdir()
        for one in base.iterdir():
            (half / one.name).write_bytes(one.read_bytes())
        tensors = {name: value.bfloat16() for name, value in load_file(half / "model.safetensors").items()}
        save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
        options = {"load_args_from_ckpt_dir": False, "model_type": "llmtune-tiny", "model_id_or_path": str(half)}
    folder = merge_checkpoint(arguments(rewards, **options), tmp_path / "merged")
    tensors = load_file(folder / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert tensors["score.weight"].abs().max() > 0


@pytest.mark.medium
@pytest.mark.parametrize("rewards", ["tied"], indirect=True)
@pytest.mark.parametrize("way", ["streamed", "in memory"])
def test_a_merge_that_changes_the_scores_writes_nothing(rewards, way, tmp_path, monkeypatch):
    own = merging.outputs_of
    calls: list[int] = []

    def changed(model: Any, ids: Any, **options: Any) -> Any:
        calls.append(1)
        hidden, scores = own(model, ids, **options)
        return hidden, scores + (0.1 if len(calls) > 1 else 0.0)

    def refuse(*_: Any, **__: Any) -> None:
        raise Unstreamable("the test wants it")

    monkeypatch.setattr(merging, "outputs_of", changed)
    if way == "in memory":
        monkeypatch.setattr(merging, "build_meta_model", refuse)
    with pytest.raises(CheckpointError, match="failed its check"):
        merge_checkpoint(arguments(rewards), tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.medium
@pytest.mark.parametrize("rewards", ["tied"], indirect=True)
def test_export_merges_and_refuses_formats_that_generate(rewards, tmp_path):
    for options in ({"to": "gguf"}, {"quant_method": "gptq"}, {"quant_method": "bnb"}):
        with pytest.raises(UsageError, match="is a reward model: use --merge_lora true"):
            ExportArguments(ckpt_dir=str(rewards), **options)
    folder = export(ExportArguments(ckpt_dir=str(rewards), merge_lora=True, output_dir=str(tmp_path / "out")))
    assert is_reward(folder)
    for options in ({"to": "gguf"}, {"quant_method": "gptq"}):
        with pytest.raises(UsageError, match="is a reward model"):
            ExportArguments(ckpt_dir=str(folder), **options)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("rewards", ["untied"], indirect=True)
def test_the_model_card_scores_and_does_not_generate(rewards, kind, tmp_path, monkeypatch, base):
    folder = rewards if kind == "adapter" else merge_checkpoint(arguments(rewards), tmp_path / "merged")
    place = tmp_path / "card"
    place.mkdir()
    for one in folder.iterdir():
        if one.is_file():
            (place / one.name).write_bytes(one.read_bytes())
    write_card(place, rewards, {"model_type": "llmtune-tiny", "model_id_or_path": "org/base"})
    text = (place / "README.md").read_text()
    assert "pipeline_tag: text-classification" in text
    assert "text-generation" not in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(place)
    found: dict[str, Any] = {}
    exec(code[1].replace("org/base", str(base)), found)
    scorer = load_scorer(arguments(rewards))
    prompt = Conversation((Message("user", "What is 1 plus 1?"),))
    row = Comparison(prompt, (Answer((Message("assistant", "2.", loss=True),)),))
    assert found["score"] == pytest.approx(scorer.scores_of(scorer.encode([row]))[0][0], abs=EXACT)
