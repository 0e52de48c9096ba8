"""Each family that is converted to GGUF: what is in the file, and what llama.cpp itself answers from it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune import ExportArguments, export
from llmtune.errors import CheckpointError, ModelError
from llmtune.exporting import gguf_families
from llmtune.exporting.gguf_families import FAMILIES
from tests.gguf_cases import CASES, Case, make_case

gguf = pytest.importorskip("gguf")
TEXT = "How much is  12 plus 345?\n\nit's 它們 don't\tknow 🙂!"
COUNT = 24


def convert(folder: Path, target: Path, gguf_type: str = "f16") -> Path:
    made = export(
        ExportArguments(
            ckpt_dir=str(folder), model_type="auto", model_id_or_path=str(folder), template_type="default-generation",
            to="gguf", gguf_type=gguf_type, output_dir=str(target),
        )
    )  # fmt: skip
    return made / "model.gguf"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """architecture -> its folder and GGUF file, made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def find(name: str) -> tuple[Path, Path]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            folder = make_case(CASES[name], place / "model")
            made[name] = folder, convert(folder, place / "gguf")
        return made[name]

    return find


def test_each_family_has_a_case():
    assert list(CASES) == list(FAMILIES)


@pytest.mark.medium
@pytest.mark.parametrize("name", FAMILIES)
def test_all_weights_and_sizes_are_in_the_file(converted, name):
    folder, file = converted(name)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == [name]
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    arch = fields["general.architecture"]
    assert arch == FAMILIES[name].arch
    assert fields[f"{arch}.block_count"] == config["num_hidden_layers"]
    assert fields[f"{arch}.attention.head_count"] == config["num_attention_heads"]
    assert fields[f"{arch}.context_length"] == config["max_position_embeddings"]
    own = AutoTokenizer.from_pretrained(folder)
    assert fields["tokenizer.ggml.tokens"][: len(own)] == own.convert_ids_to_tokens(range(len(own)))
    tensors = {tensor.name: tensor for tensor in reader.tensors if not tensor.name.startswith("rope_")}
    assert sum(tensor.n_elements for tensor in tensors.values()) == sum(one.numel() for one in weights.values())
    output = next(key for key in weights if ".0.self_attn." in key and key.endswith(("o_proj.weight", "dense.weight")))
    stored = torch.from_numpy(tensors["blk.0.attn_output.weight"].data.copy()).float()
    torch.testing.assert_close(stored, weights[output], rtol=0, atol=0)


def llama_cpp() -> Path:
    """Return the folder whose node_modules has node-llama-cpp: see .venv/.installed-test in the Makefile."""
    folder = Path(os.environ.get("LLMTUNE_TEST_LLAMA_CPP") or Path(sys.prefix) / "llama.cpp")
    if not shutil.which("node"):
        pytest.skip("node, which runs llama.cpp, is not installed")
    if not (folder / "node_modules/node-llama-cpp").is_dir():
        pytest.skip(f"there is no llama.cpp in {folder}; set LLMTUNE_TEST_LLAMA_CPP")
    return folder


def ask(files: list[Path], place: Path) -> list[dict[str, Any]]:
    jobs = place / "jobs.json"
    jobs.write_text(json.dumps([{"model": str(file), "text": TEXT, "count": COUNT} for file in files]))
    script = Path(__file__).with_name("ask_llama_cpp.mjs")
    command = ["node", str(script), str(llama_cpp()), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(files), done.stderr
    return lines


def own_answer(folder: Path) -> dict[str, Any]:
    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = {"max_new_tokens": COUNT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    return {"prompt": ids, "answer": answer}


@pytest.mark.slow
def test_llama_cpp_answers_as_transformers_does(converted, tmp_path):
    llama_cpp()
    made = {name: converted(name) for name in FAMILIES}
    theirs = dict(zip(made, ask([file for _, file in made.values()], tmp_path), strict=True))
    ours = {name: own_answer(folder) for name, (folder, _) in made.items()}
    assert theirs == ours
    assert all(len(set(one["answer"])) > 5 for one in ours.values()), "a constant answer would show nothing"


@pytest.mark.slow
def test_llama_cpp_answers_otherwise_from_rows_in_the_wrong_order(tmp_path, monkeypatch):
    """The test above can fail."""
    llama_cpp()
    wrong = dataclasses.replace(FAMILIES["GraniteForCausalLM"], permutes=False)
    monkeypatch.setitem(gguf_families.FAMILIES, "GraniteForCausalLM", wrong)
    folder = make_case(CASES["GraniteForCausalLM"], tmp_path / "model")
    (found,) = ask([convert(folder, tmp_path / "gguf")], tmp_path)
    assert found["answer"] != own_answer(folder)["answer"]


REFUSED = {
    "scores scaled by": ("gemma2", {"query_pre_attn_scalar": 64, "head_dim": 32}, "not scaled by the head size"),
    "order of windows": ("gemma3_text", {"head_dim": 32, "layer_types": ["full_attention"] * 2}, "every sixth"),
    "experts": ("qwen3_moe", {"norm_topk_prob": False}, "its norm_topk_prob is False"),
    "dense layers": ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}, "have no experts"),
    "bias": ("olmo2", {"attention_bias": True}, "its attention_bias is True"),
    "activation": ("starcoder2", {"hidden_act": "relu"}, "its activation is 'relu'"),
    "RoPE": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_computes_differently_is_refused(tmp_path, what):
    kind, changes, message = REFUSED[what]
    folder = make_case(Case(kind, changes), tmp_path / "model")
    with pytest.raises(ModelError, match=message) as caught:
        convert(folder, tmp_path / "gguf")
    assert "\n" not in str(caught.value)
    assert "convert_hf_to_gguf.py" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_window_that_llama_cpp_lacks_is_a_warning(tmp_path, capfd):
    convert(make_case(Case("starcoder2", {"sliding_window": 16}), tmp_path / "model"), tmp_path / "gguf")
    assert "attends to the last 16 tokens, in llama.cpp to all" in capfd.readouterr().err


def test_a_tensor_that_was_written_wrong_is_found(tmp_path, monkeypatch):
    folder = make_case(Case("granite"), tmp_path / "model")
    quantize = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda data, kind: quantize(-data, kind))
    with pytest.raises(CheckpointError, match="failed its check"):
        convert(folder, tmp_path / "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
