"""From an id on a hub to a model, a dataset and a trained run: the whole road, over the loopback."""

from __future__ import annotations

import pytest

from llmtune.arguments.sft import SftArguments
from llmtune.data.loading import load_source
from llmtune.models.loading import get_model_tokenizer
from llmtune.stages.sft import sft

HUBS = pytest.mark.parametrize("use_hf", [False, True], ids=["ModelScope", "HuggingFace"])


@pytest.mark.medium
@HUBS
def test_a_model_by_its_id(hub, use_hf):
    """Configuration and tokenizer first; weights when the model is asked for."""
    model, tokenizer = get_model_tokenizer(model_id_or_path="owner/tiny", use_hf=use_hf, load_model=False)
    assert model is None
    assert tokenizer.eos_token == "<|im_end|>"
    assert not any("safetensors" in line for line in hub.transfers())
    model, _ = get_model_tokenizer(model_id_or_path="owner/tiny", use_hf=use_hf, load_tokenizer=False)
    assert any("safetensors" in line for line in hub.transfers())
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("item", ["ms::owner/rows", "hf::owner/rows", "ms::owner/rows:default"])
def test_a_hub_dataset_by_its_id(hub, item):
    loaded = load_source(item)
    assert [message["content"] for message in loaded.train[0]["messages"]] == ["a", "b"]
    hub.requests.clear()
    load_source(item)
    assert not hub.transfers()


@pytest.mark.medium
def test_a_run_fetches_model_and_rows_by_their_ids(hub, tmp_path, capsys):
    hub.repos["dataset", "owner/rows"]["train.csv"] = b"query,response\n" + b"a question,an answer\n" * 20
    result = sft(
        SftArguments(
            model_id_or_path="owner/tiny", dataset=["ms::owner/rows#10"], max_steps=1, output_dir=str(tmp_path),
            gradient_accumulation_steps=1, template_type="chatml",
        )
    )  # fmt: skip
    assert result.last_checkpoint is not None
    said = capsys.readouterr().err
    assert said.index("Dataset owner/rows on ModelScope") > said.index("Model owner/tiny on ModelScope")
    assert said.index("First sample") < said.rindex("Model owner/tiny on ModelScope"), "weights come after the encoding"
