"""get_model_tokenizer: entries, folders, dtypes, requirements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import MODEL_MAPPING, get_model_tokenizer, register_model
from llmtune.errors import HubError, MissingPackageError, ModelError, UnknownKeyError, UsageError
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.tiny import tiny_folder
from tests.accelerated import pretend


@pytest.fixture
def entry() -> Callable[..., str]:
    """Register a model, under a key of its own."""

    def register(**fields: Any) -> str:
        key = f"test-{len(MODEL_MAPPING)}"
        register_model(key, **({"model_id_or_path": str(tiny_folder()), "template": "chatml"} | fields))
        return key

    return register


def test_both_or_either():
    model, tokenizer = get_model_tokenizer("llmtune-tiny")
    assert model.dtype is torch.float32
    assert tokenizer.pad_token_id is not None
    assert get_model_tokenizer("llmtune-tiny", load_model=False)[0] is None
    assert get_model_tokenizer("llmtune-tiny", load_tokenizer=False)[1] is None


def test_the_key_is_found_by_folder_name(tmp_path):
    folder = tmp_path / "Qwen2.5-0.5B-Instruct"
    shutil.copytree(tiny_folder(), folder)
    model, _ = get_model_tokenizer(model_id_or_path=str(folder), torch_dtype="bf16")
    assert model.dtype is torch.bfloat16
    with pytest.raises(ModelError, match=r"no config\.json"):
        get_model_tokenizer(model_id_or_path=str(tmp_path))
    with pytest.raises(UnknownKeyError, match="llmtune-tiny"):
        get_model_tokenizer("llmtune-tinny")


def test_an_unknown_or_unsupported_dtype_is_refused(entry):
    free = MODEL_MAPPING["llmtune-tiny"]
    assert resolve_dtype(free, torch.float16)[0] is torch.float16
    with pytest.raises(UsageError, match="bf16, fp16 or fp32"):
        resolve_dtype(free, "int8")
    pinned = MODEL_MAPPING[entry(torch_dtype=torch.bfloat16)]
    assert pinned.torch_dtype == "bf16"
    assert resolve_dtype(pinned) == (torch.bfloat16, "the model's own")
    with pytest.raises(UsageError, match="--dtype bf16"):
        resolve_dtype(pinned, "fp16")
    with pytest.raises(UsageError, match="torch_dtype"):
        entry(torch_dtype="int4")


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_dtype_on_a_gpu(monkeypatch, bf16, expected):
    pretend(monkeypatch, "cuda", bf16=bf16)
    assert resolve_dtype(MODEL_MAPPING["llmtune-tiny"])[0] is expected


def test_missing_requirements_are_named_with_their_pip_line(entry):
    with pytest.raises(MissingPackageError, match="pip install 'no-such-package>=1'"):
        get_model_tokenizer(entry(requires=["no-such-package>=1"]))
    with pytest.raises(MissingPackageError, match=r"torch<1.*torch .* is installed"):
        get_model_tokenizer(entry(requires="torch<1"))
    get_model_tokenizer(entry(requires=["torch>=2"]), load_model=False)


def test_a_custom_get_function_gets_the_arguments_of_the_ecosystem(entry):
    """The arguments are those that functions of this ecosystem take."""
    seen: dict[str, Any] = {}

    def load(model_dir, torch_dtype, model_kwargs, load_model=True, **kwargs):
        seen.update(model_dir=model_dir, torch_dtype=torch_dtype, load_model=load_model, **kwargs)
        return get_model_tokenizer("llmtune-tiny", torch_dtype=torch_dtype, load_model=load_model)

    key = entry(get_function=load, lora_TM=["q_proj"])
    model, tokenizer = get_model_tokenizer(key, torch_dtype="fp16")
    assert model.dtype is torch.float16
    assert tokenizer is not None
    assert seen["model_dir"] == str(tiny_folder())
    assert seen["model_info"].lora_TM == ("q_proj",)


def test_a_function_as_the_readme_of_2023_has_it(entry):
    """It hands model_kwargs on to transformers, and has no parameters but these."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(model_dir, torch_dtype, model_kwargs, load_model=True, **kwargs):
        tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True)
        model = None
        if load_model:
            model = AutoModelForCausalLM.from_pretrained(
                model_dir, torch_dtype=torch_dtype, trust_remote_code=True, **model_kwargs
            )
        return model, tokenizer

    def strict(model_dir, torch_dtype, model_kwargs, load_model=True):
        return load(model_dir, torch_dtype, model_kwargs, load_model)

    for function in (load, strict):
        key = entry(get_function=function)
        options = {"trust_remote_code": False, "allow_pickle": True, "use_flash_attn": False}
        model, tokenizer = get_model_tokenizer(key, torch_dtype="bf16", model_kwargs={"use_cache": False}, **options)
        assert model.dtype is torch.bfloat16
        assert model.config._attn_implementation == "sdpa"
        assert tokenizer is not None
        with pytest.raises(ModelError, match=r"--rope_scaling cannot be followed"):
            get_model_tokenizer(key, rope=("linear", 2.0))


@pytest.mark.medium
def test_such_a_function_trains_and_answers(entry, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmtune import InferArguments, SftArguments, infer, sft

    def load(model_dir, torch_dtype, model_kwargs, load_model=True, **kwargs):
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch_dtype, **model_kwargs)
        return (model if load_model else None), tokenizer

    key = entry(get_function=load, lora_TM=["q_proj"])
    result = sft(SftArguments(
        model_type=key, dataset=["tiny-qa#20"], max_steps=2, batch_size=2, gradient_accumulation_steps=1,
        report_to=["none"], output_dir=str(tmp_path), dataset_test_ratio=0.1,
    ))  # fmt: skip
    assert infer(InferArguments(ckpt_dir=str(result.checkpoint), show_dataset_sample=1, max_new_tokens=2))


def test_the_api_of_2023_is_an_error_that_names_todays():
    """MODEL_MAPPING was a dict of dicts."""
    with pytest.raises(UsageError, match=r"register_model\('mine', \.\.\.\) adds an entry"):
        MODEL_MAPPING["mine"] = {"model_id": "a/b"}  # type: ignore[index]
    with pytest.raises(UsageError, match=r"register_model\('llmtune-tiny'"):
        del MODEL_MAPPING["llmtune-tiny"]  # type: ignore[attr-defined]
    entry = MODEL_MAPPING["llmtune-tiny"]
    for read in (lambda: entry["template"], lambda: entry.get("template")):
        with pytest.raises(UsageError, match=r"entry\.template; dict\(entry\) converts"):
            read()
    assert dict(entry)["template"] == entry.template


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_registration_ends_with_its_test(time):
    """See tests/conftest.py: without it, the second time would meet a DuplicateKeyError."""
    before = len(MODEL_MAPPING)
    MODEL_MAPPING.register("of-one-test", MODEL_MAPPING["llmtune-tiny"], aliases=("of-one-test-too",))
    assert len(MODEL_MAPPING) == before + 1 > 100


def test_folders_that_are_no_models(tmp_path):
    def load(folder: Path) -> Any:
        return get_model_tokenizer("llmtune-tiny", model_id_or_path=str(folder))

    with pytest.raises(ModelError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder(), broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(broken)
    remote = tmp_path / "remote"
    shutil.copytree(tiny_folder(), remote)
    config = json.loads((remote / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (remote / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="--trust_remote_code true"):
        load(remote)


def test_a_tokenizer_without_an_end(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="eos_token"):
        get_model_tokenizer("llmtune-tiny", model_id_or_path=str(folder), load_model=False)


def test_a_model_that_is_not_here_and_no_network():
    with pytest.raises(HubError, match=r"Qwen/Qwen2\.5-7B' of ModelScope is not on this machine"):
        get_model_tokenizer("qwen2.5-7b")
    with pytest.raises(HubError, match=r"meta-llama/Llama-2-7b-hf' of Hugging Face"):
        get_model_tokenizer("llama2-7b", use_hf=True)
    with pytest.raises(ModelError, match="no id on Hugging Face"):
        get_model_tokenizer("ziya2-13b", use_hf=True)
