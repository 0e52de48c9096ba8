"""Every kind of adapter, end to end: it is really that kind, learns, is read back as it was, and merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.errors import CheckpointError, UsageError
from llmtune.inference.load import load_engine
from llmtune.models.tiny import tiny_folder
from llmtune.training.stage import Stage
from llmtune.tuners.tune import keep_unpacked

QUICK: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 4, "eval_steps": 2, "logging_steps": 1, "val_dataset_sample": 4, "learning_rate": 5e-3,
    "warmup_ratio": 0, "lr_scheduler_type": "constant", "report_to": ["none"],
}  # fmt: skip
IDS = torch.arange(3, 40)[None]
LAYERS = 4

MODES: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "lora_alpha": 8},
    "dora": {"use_dora": True},
    "loraplus": {"lorap_lr_ratio": 16.0, "learning_rate": 1e-3},
    "pissa": {"lora_init": "pissa", "lora_alpha": 8, "learning_rate": 1e-3},
    "olora": {"lora_init": "olora", "lora_alpha": 8, "learning_rate": 5e-3},
    "olora-rs": {"lora_init": "olora", "use_rslora": True, "lora_alpha": 8, "learning_rate": 1e-3},
    "ia3": {"sft_type": "ia3", "learning_rate": 5e-2},
    "adalora": {"sft_type": "adalora", "lora_rank": 4, "learning_rate": 2e-2, "max_steps": 12},
    "vera": {"sft_type": "vera", "lora_rank": 16, "learning_rate": 5e-2, "lora_target_modules": ["ALL"]},
}


def quick(folder: Path, **options: Any) -> Any:
    return sft(SftArguments(**(QUICK | {"output_dir": str(folder)} | options)))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logging.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run) if "loss" in record]


def saved_config(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8")))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers of the runs."""
    made: list[Any] = []
    own = Stage._trainer
    monkeypatch.setattr(Stage, "_trainer", lambda *args: made.append(own(*args)) or made[-1])
    return made


def check_active(mode: str, trainer: Any, config: dict[str, Any]) -> None:
    """That the mode was not merely asked for."""
    model = trainer.model
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    if mode in ("rslora", "olora-rs"):
        assert config["use_rslora"]
        assert layer.scaling["default"] == pytest.approx(8 / 8**0.5)
    if mode == "dora":
        assert config["use_dora"]
        assert sum("lora_magnitude_vector" in name for name in trainable) == 3 * LAYERS
    if mode == "loraplus":
        rates = [round(group["lr"], 6) for group in trainer.optimizer.param_groups for _ in group["params"]]
        assert (rates.count(1e-3), rates.count(16e-3)) == (3 * LAYERS, 3 * LAYERS)
        assert {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]} == {0.01}
    if mode in ("pissa", "olora", "olora-rs"):
        assert layer.r["default"] == 8
        assert (config["r"], config["init_lora_weights"]) == (16, True)
        base = AutoModelForCausalLM.from_pretrained(str(tiny_folder())).model.layers[0].self_attn.q_proj
        assert not torch.allclose(layer.get_base_layer().weight, base.weight, atol=1e-3)
    if mode == "ia3":
        assert all("ia3_l" in name for name in trainable)
        assert len(trainable) == 3 * LAYERS
        assert config["feedforward_modules"] == ["down_proj"]
        assert sorted(config["target_modules"]) == ["down_proj", "k_proj", "v_proj"]
    if mode == "adalora":
        assert config["target_r"] == 4
        kept = [sum(kept) for kept in config["rank_pattern"].values()]
        assert sum(kept) == 4 * len(kept)
        assert {len(kept) for kept in config["rank_pattern"].values()} == {6}
        assert len(kept) == 3 * LAYERS
    if mode == "vera":
        assert all("vera_lambda" in name for name in trainable)
        assert len(trainable) == 2 * 7 * LAYERS
        assert config["r"] == 16


@pytest.mark.medium
@pytest.mark.parametrize("mode", MODES)
def test_each_kind_of_tuner_trains_and_saves(tmp_path, trained, mode):
    found = quick(tmp_path, **MODES[mode])
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.1
    checkpoint, model = found.last_checkpoint, trained[0].model
    config = saved_config(checkpoint)
    assert config["peft_type"] == MODES[mode].get("sft_type", "lora").upper()
    check_active(mode, trained[0], config)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    before = logits(base)
    again = PeftModel.from_pretrained(base, str(checkpoint))  # by PEFT alone, on the base as it was
    assert not torch.allclose(logits(again), before, atol=1e-2)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-4, rtol=1e-4)
    options = {"ckpt_dir": str(checkpoint), "max_new_tokens": 2, "show_dataset_sample": 1, "do_sample": False}
    asked = InferArguments(merge_lora_and_save=True, **options)
    assert asked.sft_type == MODES[mode].get("sft_type", "lora")
    torch.testing.assert_close(logits(load_engine(asked).model), logits(model), atol=1e-4, rtol=1e-4)
    infer(asked)
    merged = AutoModelForCausalLM.from_pretrained(str(checkpoint.with_name(f"{checkpoint.name}-merged")))
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.medium
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "adalora"])
def test_each_kind_of_tuner_resumes_to_the_same_losses(tmp_path, mode):
    options = MODES[mode] | {"save_total_limit": -1}
    whole = quick(tmp_path / "a", **options)
    stopped = tmp_path / "b/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    (whole.output_dir / "checkpoint-2").rename(stopped / "checkpoint-2")
    resumed = quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), **options)
    expected = losses(whole.output_dir)[2:]
    assert losses(resumed.output_dir) == pytest.approx(expected, rel=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["pissa", "olora"])
def test_a_beginning_of_another_machine_is_taken_from_the_checkpoint(tmp_path, mode, monkeypatch):
    """Decompositions differ between machines: a resumed run must go on from the one it began with."""
    options = MODES[mode] | {"save_total_limit": -1}
    whole = quick(tmp_path / "a", **options)
    own = torch.linalg.svd, torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: (lambda u, s, v: (u * 0.9, s * 0.8, v))(*own[0](*a, **k)))
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: (lambda q, r: (-q, r * 0.9))(*own[1](*a, **k)))
    stopped = tmp_path / "b/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    (whole.output_dir / "checkpoint-2").rename(stopped / "checkpoint-2")
    resumed = quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), **options)
    assert losses(resumed.output_dir) == pytest.approx(losses(whole.output_dir)[2:], rel=1e-4)
    with pytest.raises(CheckpointError, match="--lora_rank 8"):
        quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), **options | {"lora_rank": 4})


@pytest.mark.medium
def test_going_on_from_an_adapter(tmp_path):
    first = quick(tmp_path / "a", lora_target_modules=["ALL"])
    swift = tmp_path / "swift"  # adapters in default/, as a pickle-free run of Swift left them
    (swift / "default").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(first.last_checkpoint / name, swift / "default" / name)
    for place in (first.last_checkpoint, swift):
        second = quick(tmp_path / "b", peft_path=str(place), max_steps=1)
        assert losses(second.output_dir)[0] < losses(first.output_dir)[0] - 0.2
    engine = load_engine(InferArguments(model_type="llmtune-tiny", ckpt_dir=str(swift), eval_human=True))
    weights = load_file(first.last_checkpoint / "adapter_model.safetensors")
    assert len(engine.model.peft_config["default"].target_modules) == 7
    assert len(weights) == 2 * 7 * LAYERS
    with pytest.raises(UsageError, match="--sft_type lora"):
        quick(tmp_path / "c", peft_path=str(swift), sft_type="ia3")


@pytest.mark.medium
def test_neftune_is_active_in_training_alone(tmp_path):
    options = {"learning_rate": 1e-12, "max_steps": 2}
    plain, noisy = quick(tmp_path / "a", **options), quick(tmp_path / "b", neftune_noise_alpha=50.0, **options)
    assert losses(noisy.output_dir)[0] != pytest.approx(losses(plain.output_dir)[0], rel=1e-3)
    assert noisy.metrics["eval_loss"] == pytest.approx(plain.metrics["eval_loss"], rel=1e-6)


@pytest.mark.medium
def test_adalora_is_regularised_in_training_alone(tmp_path):
    """Its losses of a step are the same however the rows are batched, and those of evaluation are plain."""
    options = {"sft_type": "adalora", "max_steps": 2, "learning_rate": 1e-12}
    plain = quick(tmp_path / "a", max_steps=2, learning_rate=1e-12)
    runs = [
        quick(tmp_path / f"{size}", batch_size=size, gradient_accumulation_steps=4 // size, **options)
        for size in (1, 4)
    ]
    assert losses(runs[0].output_dir) == pytest.approx(losses(runs[1].output_dir), rel=1e-4)
    assert losses(runs[1].output_dir)[0] > losses(plain.output_dir)[0] + 0.1
    assert runs[0].metrics["eval_loss"] == pytest.approx(plain.metrics["eval_loss"], rel=1e-3)


def test_adalora_does_not_resume():
    with pytest.raises(UsageError, match="adalora cannot resume"):
        SftArguments(model_type="llmtune-tiny", sft_type="adalora", peft_path="x")


def test_flags_of_other_kinds_are_named():
    args = SftArguments(
        model_type="llmtune-tiny", sft_type="ia3", use_dora=True, lora_rank=4, lora_target_modules=["ALL"]
    )
    assert args.unused_flags() == ["--lora_rank", "--use_dora"]
    assert SftArguments(model_type="llmtune-tiny", sft_type="vera", lora_rank=4).unused_flags() == []
    assert args.learning_rate == 3e-3
    assert not args.only_save_model


@pytest.mark.parametrize("other", [{"quantization_bit": 4}, {"use_dora": True}])
def test_pissa_refuses_quantisation_and_dora(other):
    with pytest.raises(UsageError, match="--lora_init pissa"):
        SftArguments(model_type="llmtune-tiny", lora_init="pissa", **other)


@pytest.fixture
def marked(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "where is <here>?", "response": "<here> it is."}\n' * 24)
    return {"dataset": [str(file)], "new_special_tokens": ["<here>", "<there>"], "learning_rate": 1e-2}


@pytest.mark.parametrize("options", [{"sft_type": "lora"}, {"sft_type": "full"}, {"quantization_bit": 4}])
def test_new_tokens_are_trained_and_saved(tmp_path, trained, marked, options):
    if "quantization_bit" in options:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    found = quick(tmp_path, **marked, **options)
    values = losses(found.output_dir)
    assert values[-1] < values[0] - 0.2
    model = trained[0].model
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    ids = engine.tokenizer.convert_tokens_to_ids(["<here>", "<there>"])
    assert max(ids) + 1 > base.get_input_embeddings().weight.shape[0], "the embedding had to grow"
    (one,) = engine.tokenizer("<here>", add_special_tokens=False)["input_ids"]
    assert one == ids[0]
    assert trained[0].train_dataset[0]["input_ids"].tolist().count(one) == 2
    text = torch.tensor([[5, one, 7, ids[1], 9]])
    keep_unpacked(engine.model)
    with torch.no_grad():
        torch.testing.assert_close(engine.model(text).logits, model.eval()(text).logits, atol=1e-4, rtol=1e-4)
    if options.get("sft_type") == "full":
        return
    rows = [name for name in load_file(found.last_checkpoint / "adapter_model.safetensors") if "token" in name]
    assert rows
    assert saved_config(found.last_checkpoint)["trainable_token_indices"] == {"embed_tokens": ids}
    merged = infer(InferArguments(ckpt_dir=str(found.last_checkpoint), merge_lora_and_save=True, max_new_tokens=2,
                                  show_dataset_sample=1))  # fmt: skip
    assert merged
    whole = AutoModelForCausalLM.from_pretrained(str(found.last_checkpoint.with_name("checkpoint-4-merged")))
    old, new = base.get_input_embeddings().weight, whole.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old), "the rows of other tokens are as they were"
    if not options.get("quantization_bit"):
        torch.testing.assert_close(logits(whole), logits(model), atol=1e-3, rtol=1e-3)


def test_new_tokens_of_a_head_of_its_own(tmp_path, trained, marked):
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(str(tiny_folder())).save_pretrained(tmp_path / "untied")
    found = quick(tmp_path, model_id_or_path=str(tmp_path / "untied"), **marked)
    tuned = trained[0].model
    assert set(saved_config(found.last_checkpoint)["trainable_token_indices"]) == {"embed_tokens", "lm_head"}
    trainable = [name for name, value in tuned.named_parameters() if value.requires_grad and "token" in name]
    assert len(trainable) == 2
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    torch.testing.assert_close(logits(engine.model), logits(tuned), atol=1e-4, rtol=1e-4)
    assert engine.model.get_output_embeddings().weight.shape[0] == len(engine.tokenizer)
    torch.testing.assert_close(logits(engine.model.merge_and_unload()), logits(tuned), atol=1e-3, rtol=1e-3)


@pytest.mark.medium
def test_new_tokens_resume_to_the_same_losses(tmp_path, marked):
    whole = quick(tmp_path / "a", save_total_limit=-1, **marked)
    stopped = tmp_path / "b/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    (whole.output_dir / "checkpoint-2").rename(stopped / "checkpoint-2")
    resumed = quick(tmp_path / "b", resume_from_checkpoint=str(stopped / "checkpoint-2"), **marked)
    assert losses(resumed.output_dir) == pytest.approx(losses(whole.output_dir)[2:], rel=1e-6)


def test_a_token_that_exists_is_refused_as_new(tmp_path):
    with pytest.raises(UsageError, match=r"<\|im_end\|>: the tokenizer already has it"):
        quick(tmp_path, new_special_tokens=["<|im_end|>"])


def test_frozen_layers_and_parameters_do_not_change(tmp_path, trained):
    options = {"sft_type": "full", "freeze_layers": 2, "freeze_parameters": ["embed_tokens", r"layers\.3\.mlp"]}
    found = quick(tmp_path, learning_rate=1e-3, **options)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    tuned = AutoModelForCausalLM.from_pretrained(str(found.last_checkpoint))
    after = dict(tuned.named_parameters())
    same = {name for name, value in base.named_parameters() if torch.equal(value, after[name])}
    frozen = ("layers.0.", "layers.1.", "embed_tokens", "layers.3.mlp")
    assert same == {name for name in after if any(part in name for part in frozen)}
    assert losses(found.output_dir)[-1] < losses(found.output_dir)[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_layers": 5}, "the model has 4 layers"),
        ({"freeze_parameters": ["nothing"]}, "matches no parameter"),
        ({"freeze_parameters": ["model"]}, "Nothing is left to train"),
        ({"freeze_parameters": ["("]}, "not a valid regular expression"),
    ],
)
def test_freezing_that_matches_nothing_or_leaves_nothing_is_refused(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        quick(tmp_path, sft_type="full", **options)
