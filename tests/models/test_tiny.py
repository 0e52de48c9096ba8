"""The embedded model: an ordinary folder, the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmtune.data.formats import to_conversation
from llmtune.errors import OutputError
from llmtune.models import tiny
from llmtune.models.info import MODEL_MAPPING
from llmtune.registry import resolve_reference
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.templates.lookup import get_template
from llmtune.templates.parity import first_difference

from ..waiting import SECONDS

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tiny.tiny_folder()


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_entry_names_the_folder():
    entry = MODEL_MAPPING["llmtune-tiny"]
    assert entry.template == "chatml"
    assert resolve_reference(entry.get_folder, what="the entry") is tiny.tiny_folder


def test_registering_imports_no_torch():
    code = "import sys; from llmtune.models.info import MODEL_MAPPING as m; len(m); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.medium
def test_two_processes_make_the_same_bytes(folder: Path, tmp_path: Path):
    code = "from llmtune.models.tiny import tiny_folder; print(tiny_folder())"
    for seed in ("1", "2"):
        # Another hash seed and another number of threads: neither may show in the files.
        environment = os.environ | {
            "LLMTUNE_CACHE": str(tmp_path / seed),
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": seed,
            "OMP_NUM_THREADS": seed,
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        other = Path(done.stdout.strip())
        assert other.name == folder.name
        assert digests(other) == digests(folder)


def test_the_tiny_model_is_built_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(folder.parent.parent))
    before = (folder / "config.json").stat().st_mtime_ns
    assert tiny.tiny_folder() == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["cut", "emptied", "zeroed", "missing"])
def test_a_damaged_folder_is_made_anew(folder, tmp_path, monkeypatch, capsys, name, damage):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    shutil.copytree(folder.parents[1], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "models" / folder.name / name
    raw = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes({"cut": raw[:-5], "emptied": b"", "zeroed": bytes(len(raw))}[damage])
    assert digests(tiny.tiny_folder()) == digests(folder)
    assert "is damaged; it is made anew" in capsys.readouterr().err


def test_makers_at_the_same_time_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two ranks of one run both find no folder; the slower rename must not end its rank."""
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    gate = threading.Barrier(2)
    write = tiny._write_weights
    monkeypatch.setattr(tiny, "_write_weights", lambda path: (gate.wait(SECONDS), write(path)))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(tiny.tiny_folder())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert [path.name for path in (tmp_path / "models").iterdir()] == [found[0].name]


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models").write_text("in the way")
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    with pytest.raises(OutputError):
        tiny.tiny_folder()


def test_random_states_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    before = (torch.get_rng_state(), random.getstate())
    tiny.tiny_folder()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_plain_transformers_loads_every_weight_and_generates(folder: Path, tokenizer):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert 1_000_000 < sum(weight.numel() for weight in model.parameters()) < 3_000_000
    inputs = tokenizer("你好, world", return_tensors="pt")
    made = model.generate(inputs["input_ids"], max_new_tokens=5, min_new_tokens=5)
    assert made.shape[1] == inputs["input_ids"].shape[1] + 5


def test_untrained_loss_is_that_of_a_guess(model, tokenizer):
    import math

    ids = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert abs(loss - math.log(tiny.VOCAB_SIZE)) < 1.5


def test_special_tokens_are_single_and_in_place(tokenizer):
    for number, token in enumerate(tiny.SPECIAL_TOKENS):
        assert tokenizer.encode(token, add_special_tokens=False) == [number]
        assert tokenizer.added_tokens_decoder[number].special
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.bos_token is None
    assert len(tokenizer) == tiny.VOCAB_SIZE


@pytest.mark.parametrize(
    "text",
    [
        "你是谁?我是 llmtune-tiny。",
        "emoji 😀👩‍👩‍👧 and 🇨🇳 flags",
        "  two spaces, a tab\tand\n\nline breaks \n",
        "def add(a, b):\n    return a + b\n",
        "Ünïcödé, Ελληνικά, العربية, ไทย",
        "",
    ],
)
def test_decoding_inverts_encoding(tokenizer, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_transformers_keeps_the_tokenizer_as_it_was_made(folder: Path, tokenizer):
    """A model-specific tokenizer class would put a pre-tokenizer of its own in place."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for row in [*tiny.facts()[0][::25], *tiny.introductions()[::10]]:
        for text in row.values():
            assert tokenizer(text)["input_ids"] == made.encode(text).ids
    assert tokenizer.is_fast
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("What is 3 plus 14?")["input_ids"])
    assert pieces == ["What", "Ġis", "Ġ", "3", "Ġplus", "Ġ", "1", "4", "?"]


def test_chat_template_is_that_of_its_entry(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    prompt = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt.startswith(f"<|im_start|>system\n{TEMPLATE_MAPPING['chatml'].default_system}<|im_end|>\n")
    assert prompt.endswith("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
    assert (
        first_difference(get_template("chatml", tokenizer), [to_conversation({"query": "a", "response": "b"})]) is None
    )


def test_config_and_weights_agree(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == tiny.VOCAB_SIZE
    assert config["eos_token_id"] == 2
    assert config["tie_word_embeddings"] is True
