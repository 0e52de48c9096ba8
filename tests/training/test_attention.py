"""The attention of whole runs: chosen, active, named; the same losses; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmtune import InferArguments, SftArguments, sft
from llmtune.errors import MissingPackageError, ModelError, UsageError
from llmtune.inference.load import load_engine
from llmtune.models import attention
from llmtune.models.attention import asked_attention
from llmtune.models.loading import get_model_tokenizer
from llmtune.run.log import Decisions
from llmtune.training import attention as training_attention
from llmtune.training.attention import active_attention, settle_attention

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 2, "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2, "max_steps": 4, "logging_steps": 1, "eval_steps": 4, "val_dataset_sample": 4,
    "max_length": 128, "lora_target_modules": ["ALL"], "warmup_ratio": 0,
}  # fmt: skip


def run(folder: Path, **options: Any) -> Any:
    return sft(SftArguments(**(RUN | {"output_dir": str(folder)} | options)))


def logged(result: Any, *names: str) -> list[float]:
    lines = (result.output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [record[name] for record in map(json.loads, lines) for name in names if name in record]


def losses(result: Any) -> list[float]:
    return logged(result, "loss", "eval_loss")


def report(result: Any) -> str:
    return (result.output_dir / "report.md").read_text(encoding="utf-8")


@pytest.mark.medium
@pytest.mark.parametrize("flag", ["packing", "padding_free"])
def test_varlen_trains_as_sdpa_does(tmp_path, flag, monkeypatch):
    """Loss and gradients of the first step, where both have the same weights: fp32 sums in another order are 1e-6 off,
    and logs hold six digits.

    After it, Adam divides each gradient by its own size, so that one near zero moves its weight by the learning rate
    this way or that: over three such steps a rate of 1e-4 lets losses differ by less than 1e-4, on any machine.
    """
    from llmtune.models import packed_attention as varlen

    rows = []
    own = varlen._row_by_row
    monkeypatch.setattr(varlen, "_row_by_row", lambda *args: rows.append(len(args[1].queries) - 1) or own(*args))
    options = {flag: True, "learning_rate": 1e-4}
    found = run(tmp_path / "a", attn_impl="varlen", gradient_checkpointing=True, **options)
    assert max(rows) > 1, "several rows in a sequence"
    assert "Attention: varlen, one call per sequence on CPU" in report(found)
    plain = run(tmp_path / "b", attn_impl="sdpa", **options)
    assert "Attention: sdpa\n" in report(plain)
    for name, tolerance in (("loss", 5e-6), ("grad_norm", 1e-5)):
        assert logged(found, name)[0] == pytest.approx(logged(plain, name)[0], rel=tolerance), name
    assert losses(found) == pytest.approx(losses(plain), abs=1e-4)
    assert load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))


def test_a_requested_attention_is_used_and_reported(tmp_path):
    assert "Attention: eager\n" in report(run(tmp_path, attn_impl="eager", max_steps=1))


@pytest.mark.medium
def test_shifted_attention_changes_training_only(tmp_path):
    options = {"sft_type": "full", "learning_rate": 1e-3, "max_steps": 2, "eval_steps": 2}
    shifted = run(tmp_path / "a", shift_attn=True, max_length=64, **options)
    plain = run(tmp_path / "b", max_length=64, **options)
    assert "Attention: shifted (LongLoRA), groups of 16 tokens" in report(shifted)
    assert losses(shifted)[0] != pytest.approx(losses(plain)[0], abs=1e-3)
    config = json.loads((shifted.last_checkpoint / "config.json").read_text())
    assert "shifted" not in json.dumps(config)
    served = load_engine(InferArguments(ckpt_dir=str(shifted.last_checkpoint), eval_human=True)).model
    assert active_attention(served) == "sdpa"


def test_embeddings_and_norms_learn_beside_shifted_attention(tmp_path):
    """LongLoRA trains both: its section 3.3."""
    options = {"modules_to_save": ["embed_tokens", "norm"], "max_length": 64, "max_steps": 1, "shift_attn": True}
    checkpoint = run(tmp_path, **options).last_checkpoint
    from safetensors.torch import load_file

    names = load_file(checkpoint / "adapter_model.safetensors").keys()
    for part in ("embed_tokens", "layers.0.input_layernorm", "layers.3.post_attention_layernorm", "model.norm"):
        assert any(part in name for name in names)
    assert load_engine(InferArguments(ckpt_dir=str(checkpoint), eval_human=True))


# What is chosen


@pytest.fixture
def tiny():
    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
    return model


class OnGpu:
    """The model, which says that it is on a GPU."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(type="cuda") if name == "device" else getattr(self._model, name)


@pytest.mark.parametrize(
    ("options", "dtype", "installed", "active", "warned"),
    [
        ({"packing": True}, torch.bfloat16, None, "varlen", False),
        ({"padding_free": True}, torch.float16, None, "varlen", False),
        ({"packing": True}, torch.float32, None, "sdpa", True),
        ({"batch_size": 2}, torch.bfloat16, None, "varlen", False),
        ({"batch_size": 2}, torch.float32, None, "sdpa", False),
        ({"batch_size": 2, "padding_free": False}, torch.bfloat16, None, "sdpa", False),
        ({"batch_size": 1}, torch.bfloat16, None, "sdpa", False),
        ({"packing": True}, torch.bfloat16, "flash_attention_2", "varlen", False),  # installed, and does not load here
    ],
)
def test_packing_on_a_gpu_takes_varlen_or_warns_of_the_mask(
    tiny, monkeypatch, capfd, options, dtype, installed, active, warned
):
    monkeypatch.setattr(training_attention, "best_flash", lambda: installed)
    monkeypatch.setattr(training_attention, "keeps_rows_apart", lambda model: True)
    decisions = Decisions()
    settle_attention(OnGpu(tiny), SftArguments(**(RUN | options)), decisions, dtype, None)
    assert active_attention(tiny) == active
    assert decisions[-1].startswith(f"Attention: {active}; ")
    assert ("separates packed sequences with a max_length x max_length mask" in capfd.readouterr().err) == warned


def test_a_model_that_varlen_does_not_support_falls_back_to_sdpa(tiny, monkeypatch, capfd):
    def refuses(model):
        raise ValueError("varlen attention has no softcap")

    monkeypatch.setattr(training_attention, "keeps_rows_apart", refuses)
    args = SftArguments(**(RUN | {"packing": True}))
    settle_attention(OnGpu(tiny), args, Decisions(), torch.bfloat16, None)
    assert active_attention(tiny) == "sdpa"
    said = capfd.readouterr().err
    assert "no softcap" in said
    assert "max_length x max_length" in said
    args = SftArguments(**(RUN | {"packing": True, "attn_impl": "varlen"}))
    with pytest.raises(ModelError, match=r"Qwen2ForCausalLM does not support varlen attention: .* no softcap"):
        settle_attention(tiny, args, Decisions(), torch.bfloat16, None)


def test_varlen_refuses_attention_dropout(tiny):
    tiny.config.attention_dropout = 0.1
    args = SftArguments(**(RUN | {"packing": True, "attn_impl": "varlen"}))
    with pytest.raises(ModelError, match="uses attention dropout"):
        settle_attention(tiny, args, Decisions(), torch.float32, None)


def test_shifted_attention_needs_full_attention(tiny):
    tiny.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ModelError, match="full attention in every layer"):
        settle_attention(tiny, SftArguments(**(RUN | {"shift_attn": True})), Decisions(), torch.float32, None)


def test_an_attention_that_the_model_did_not_take_is_warned_of(tiny, capfd):
    settle_attention(tiny, SftArguments(**RUN), Decisions(), torch.float32, "flash_attention_2")
    assert "flash_attention_2 was requested, but the model uses sdpa" in capfd.readouterr().err


# Flags


def test_attention_without_its_gpu_or_package_is_refused(monkeypatch, capfd):
    monkeypatch.setattr(attention, "_has", lambda module: False)
    args = SftArguments(**RUN)
    with pytest.raises(UsageError, match="needs a GPU"):
        asked_attention(args, "flash_attention_2", on_cuda=False)
    with pytest.raises(MissingPackageError, match="pip install flash-attn-3"):
        asked_attention(args, "flash_attention_3", on_cuda=True)
    args.use_flash_attn = True
    assert asked_attention(args, None, on_cuda=True) is None
    assert "pip install flash-attn" in capfd.readouterr().err
    monkeypatch.setattr(attention, "_has", lambda module: module == "flash_attn")
    assert asked_attention(args, None, on_cuda=True) == "flash_attention_2"
    assert asked_attention(args, None, on_cuda=False) is None
    assert "there is no GPU with CUDA" in capfd.readouterr().err
    args.use_flash_attn = False
    assert asked_attention(args, None, on_cuda=True) == "sdpa"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_flash_attn": True, "attn_impl": "sdpa"}, "contradict"),
        ({"use_flash_attn": False, "attn_impl": "flash_attention_3"}, "contradict"),
        ({"shift_attn": True, "packing": True}, "--packing"),
        ({"shift_attn": True, "attn_impl": "eager"}, "--attn_impl eager"),
        ({"shift_attn": True, "use_flash_attn": True}, "--use_flash_attn"),
        ({"shift_attn": True, "max_length": -1}, "--max_length"),
        ({"rope_factor": 2.0}, "--rope_scaling"),
        ({"rope_scaling": "yarn", "rope_factor": 1.0}, "above 1"),
    ],
)
def test_contradicting_attention_flags_are_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SftArguments(**(RUN | options))
