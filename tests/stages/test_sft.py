"""Whole runs of the embedded model: what they write, what they keep, how they end."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune import SftArguments, sft
from llmtune.checkpoint import read_settings
from llmtune.errors import CheckpointError, OutputError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.run.status import read_status
from llmtune.training import trainer as trainer_module

from .. import prepared

QUICK: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#40"], "batch_size": 4, "gradient_accumulation_steps": 1,
    "max_steps": 6, "eval_steps": 2, "logging_steps": 2, "val_dataset_sample": 6, "learning_rate": 1e-3,
}  # fmt: skip


def quick(folder: Path, **options: Any) -> Any:
    return sft(SftArguments(**(QUICK | {"output_dir": str(folder)} | options)))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quick(tmp_path_factory.mktemp("lora"), hub_token="a-secret", lora_target_modules=["ALL"])


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logging.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.medium
def test_the_run_folder_has_its_name_and_files(lora):
    run = lora.output_dir
    assert re.fullmatch(r"v0-\d{8}-\d{6}", run.name)
    assert run.parent.name == "llmtune-tiny"
    names = {path.name for path in run.iterdir()}
    assert {
        "sft_args.json", "training_args.json", "logging.jsonl", "runs", "images", "report.md", "train_results.txt",
        "eval_results.txt", "checkpoint-6", "adapter_config.json", "adapter_model.safetensors", "trainer_state.json",
    } <= names  # fmt: skip
    assert not [name for name in names if name.startswith(".")], "nothing temporary is left"
    assert list(run.glob("runs/**/events.out.tfevents*"))
    assert {"train_loss.png", "train_learning_rate.png", "eval_loss.png"} <= {
        p.name for p in (run / "images").iterdir()
    }
    assert "train_loss = " in (run / "train_results.txt").read_text()
    assert "eval_loss = " in (run / "eval_results.txt").read_text()


def test_logging_jsonl_has_one_record_per_log_step(lora):
    found = records(lora.output_dir)
    assert [record["global_step"] for record in found if "loss" in record] == [2, 4, 6]
    assert [record["global_step"] for record in found if "eval_loss" in record] == [2, 4, 6]
    assert {"grad_norm", "learning_rate", "epoch", "useful_tokens_per_second"} <= set(found[0])
    assert all(0 <= record["eval_token_acc"] <= 1 for record in found if "eval_loss" in record)


def test_the_report_has_speed_losses_device_and_generations(lora):
    text = (lora.output_dir / "report.md").read_text(encoding="utf-8")
    for part in (
        "tokens/s (without padding)",
        "tokens/s (with padding)",
        "padding",
        "peak memory",
        "first loss",
        "last loss",
    ):
        assert re.search(rf"\| {re.escape(part)} \| \S+", text), part
    assert "CPU" in text
    assert text.count("- generation:") == 3


def test_no_secret_is_written(lora):
    for file in lora.output_dir.rglob("*"):
        if file.is_file():
            assert b"a-secret" not in file.read_bytes(), file


def test_checkpoints_are_the_ecosystems_own(lora):
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    tuned = PeftModel.from_pretrained(base, str(lora.best_checkpoint))
    ids = torch.arange(3, 20)[None]
    with tuned.disable_adapter():
        before = tuned(ids).logits
    assert not torch.allclose(tuned(ids).logits, before)
    tokenizer = AutoTokenizer.from_pretrained(str(lora.best_checkpoint))
    assert "system" in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    saved = read_settings(lora.best_checkpoint)
    assert json.loads((lora.best_checkpoint / "generation_config.json").read_text()).get("use_cache", True)
    assert (saved["model_type"], saved["dtype"], saved["max_steps"]) == ("llmtune-tiny", "fp32", 6)
    assert saved["_versions"]["torch"] == metadata.version("torch")


def test_saved_arguments_repeat_the_run(lora, tmp_path):
    from llmtune.arguments.parser import parse

    again = parse(SftArguments, ["--config", str(lora.output_dir / "sft_args.json")], command="sft")
    original = SftArguments(**(QUICK | {"output_dir": str(lora.output_dir.parents[1]), "lora_target_modules": ["ALL"]}))
    decided = {"dtype": "fp32", "gradient_checkpointing": "none", "padding_free": "true"}
    assert again == dataclasses.replace(original, **decided)


@pytest.mark.medium
def test_best_and_last_are_kept(tmp_path):
    found = quick(tmp_path, max_steps=12, save_total_limit=2, learning_rate=0.5, seed=3)  # so high that it gets worse
    kept = sorted(int(path.name.split("-")[1]) for path in found.output_dir.glob("checkpoint-*"))
    evaluated = {
        record["global_step"]: record["eval_loss"] for record in records(found.output_dir) if "eval_loss" in record
    }
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best != 12, "the test needs a run whose best is not its last"
    assert kept == sorted({best, 12})
    assert found.best_checkpoint.name == f"checkpoint-{best}"
    assert found.last_checkpoint.name == "checkpoint-12"
    state = json.loads((found.last_checkpoint / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(found.best_checkpoint)


@pytest.mark.medium
def test_a_new_best_is_saved_whenever_it_is_found(tmp_path, capsys):
    """Steps of evaluations and of checkpoints that never meet: what is called best is the best of those evaluated."""
    found = quick(tmp_path, max_steps=10, eval_steps=3, save_steps=4, save_total_limit=1, learning_rate=1.0, seed=2)
    evaluated = {line["global_step"]: line["eval_loss"] for line in records(found.output_dir) if "eval_loss" in line}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best not in (4, 8, 10), "the test needs a best step that --save_steps does not save"
    assert found.best_checkpoint.name == f"checkpoint-{best}"
    assert {path.name for path in found.output_dir.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-10"}
    assert f"Best checkpoint: {found.best_checkpoint}\n" in capsys.readouterr().err


@pytest.mark.medium
def test_full_fine_tuning_changes_every_tensor(tmp_path):
    found = quick(tmp_path, sft_type="full")
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    tuned = AutoModelForCausalLM.from_pretrained(str(found.last_checkpoint))
    changed = [not torch.equal(a, b) for a, b in zip(base.parameters(), tuned.parameters(), strict=True)]
    assert all(changed)
    assert tuned.config.use_cache, "training does not switch the cache off for those who load the checkpoint"
    assert not (found.last_checkpoint / "optimizer.pt").exists(), "only_save_model is the default of full"
    again = quick(tmp_path, sft_type="full", model_id_or_path=str(found.last_checkpoint), max_steps=2)
    assert records(again.output_dir)[0]["loss"] < records(found.output_dir)[0]["loss"]
    assert again.output_dir.name.startswith("v1-")


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_trains_with_fp32_adapters(tmp_path, dtype):
    found = quick(tmp_path, dtype=dtype, max_steps=10, learning_rate=1e-2, lora_target_modules=["ALL"])
    values = [record["loss"] for record in records(found.output_dir) if "loss" in record]
    assert values[-1] < values[0] - 0.3
    weights = torch.load(found.last_checkpoint / "training_args.bin", weights_only=False)
    assert weights.bf16 == (dtype == "bf16")
    adapter = (found.last_checkpoint / "adapter_model.safetensors").read_bytes()
    assert b'"F32"' in adapter, "adapters stay fp32"


@pytest.mark.medium
def test_common_options_train_together(tmp_path):
    found = quick(
        tmp_path, max_steps=2, gradient_checkpointing=True, neftune_noise_alpha=5.0, group_by_length=True,
        lora_bias="lora_only", modules_to_save=["lm_head"], dataloader_num_workers=2, report_to=["none"],
        train_args=["adam_beta2=0.9", "warmup_steps=1"],
    )  # fmt: skip
    saved = json.loads((found.output_dir / "training_args.json").read_text())
    assert (saved["adam_beta2"], saved["warmup_steps"]) == (0.9, 1)
    assert not (found.output_dir / "runs").exists()


def test_a_run_without_validation_has_no_best_checkpoint(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "response": "b"}\n' * 8)
    found = quick(tmp_path, dataset=[str(rows)], dataset_test_ratio=0, val_dataset_sample=None, max_steps=2)
    assert found.best_checkpoint is None
    assert found.checkpoint == found.last_checkpoint
    assert "| best checkpoint | none: nothing was evaluated" in (found.output_dir / "report.md").read_text()
    assert not (found.output_dir / "eval_results.txt").exists()


@pytest.mark.medium
def test_epoch_strategies_evaluate_and_save_per_epoch(tmp_path):
    found = quick(tmp_path, eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2, max_steps=-1)
    assert [record["global_step"] for record in records(found.output_dir) if "eval_loss" in record] == [10, 20]
    assert {path.name for path in found.output_dir.glob("checkpoint-*")} == {"checkpoint-10", "checkpoint-20"}


def test_no_checkpoints_are_asked_for(tmp_path):
    found = quick(tmp_path, save_strategy="no", max_steps=2)
    assert found.best_checkpoint is None
    assert not list(found.output_dir.glob("checkpoint-*"))
    assert found.metrics["eval_loss"] > 0


@pytest.mark.medium
def test_generation_metrics_do_not_depend_on_the_batch_size(tmp_path):
    options = {"predict_with_generate": True, "max_new_tokens": 6, "max_steps": 2, "do_sample": False}
    single = quick(tmp_path / "1", eval_batch_size=1, **options)
    batched = quick(tmp_path / "4", eval_batch_size=4, **options)
    names = {"eval_rouge-1", "eval_rouge-2", "eval_rouge-l", "eval_bleu-4", "eval_loss"}
    assert names <= set(single.metrics)
    for name in names:
        assert single.metrics[name] == pytest.approx(batched.metrics[name], rel=1e-4), "left padding changes nothing"
    state = json.loads((single.last_checkpoint / "trainer_state.json").read_text())
    assert state["best_metric"] == pytest.approx(single.metrics["eval_rouge-l"])


@pytest.mark.medium
def test_the_longest_come_first(tmp_path, monkeypatch):
    lengths: list[int] = []
    own = trainer_module.Throughput.count
    monkeypatch.setattr(
        trainer_module.Throughput,
        "count",
        lambda self, batch, samples=None: (lengths.append(batch["input_ids"].shape[1]), own(self, batch)),
    )
    quick(tmp_path, test_oom_error=True, batch_size=1, max_steps=12)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_flags_without_effect_are_named(tmp_path, capsys):
    quick(tmp_path, sft_type="full", lora_rank=4, top_k=3, hub_model_id="x", max_steps=1)
    told = capsys.readouterr().err
    assert "--lora_rank has no effect" in told
    assert "--hub_model_id has no effect" in told
    assert "--top_k has no effect" in told


def test_a_second_run_encodes_nothing(tmp_path, monkeypatch):
    from llmtune.templates.chat import ChatTemplate

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"query": "question {i}", "response": "answer"}}\n' for i in range(50)))
    first = quick(tmp_path, dataset=[str(rows)], max_steps=2)
    monkeypatch.setattr(ChatTemplate, "encode_rows", lambda *_: pytest.fail("encoded again"))
    second = quick(tmp_path, dataset=[str(rows)], max_steps=2)
    assert records(first.output_dir)[0]["loss"] == records(second.output_dir)[0]["loss"]
    with pytest.raises(pytest.fail.Exception):
        quick(tmp_path, dataset=[str(rows)], max_steps=2, max_length=100)


def test_data_is_encoded_before_weights_are_loaded(tmp_path, monkeypatch):
    from llmtune.training import stage as stage_module

    monkeypatch.setattr(stage_module, "build_model", lambda *_: pytest.fail("weights were loaded"))
    empty = tmp_path / "bad.jsonl"
    empty.write_text('{"foo": 1}\n')
    with pytest.raises(Exception, match="none of its 1 rows"):
        quick(tmp_path, dataset=[str(empty)])
    (failed,) = tmp_path.glob("llmtune-tiny/*")
    status = read_status(failed)
    assert status is not None
    assert (status.state, "none of its 1 rows" in status.error) == ("failed", True)


# Bad ends


@pytest.mark.medium
def test_a_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    own = trainer_module.StageTrainer._save_optimizer_and_scheduler
    calls = []

    def full(self: Any, folder: str) -> None:
        calls.append(folder)
        if len(calls) == 2:
            (Path(folder) / "optimizer.pt").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        own(self, folder)

    monkeypatch.setattr(trainer_module.StageTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OutputError, match=r"checkpoint-4 could not be saved .*No space left"):
        quick(tmp_path)
    (run,) = (tmp_path / "llmtune-tiny").iterdir()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not list(run.glob(".saving*"))
    monkeypatch.setattr(trainer_module.StageTrainer, "_save_optimizer_and_scheduler", own)
    resumed = quick(tmp_path, resume_from_checkpoint=str(run / "checkpoint-2"))
    assert resumed.last_checkpoint.name == "checkpoint-6"


def test_bad_checkpoints_to_resume_from(lora, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        quick(tmp_path, resume_from_checkpoint="nowhere")
    with pytest.raises(CheckpointError, match="--sft_type lora"):
        quick(tmp_path, sft_type="full", resume_from_checkpoint=str(lora.last_checkpoint))
    with pytest.raises(CheckpointError, match="Nothing is left to train"):
        quick(tmp_path, resume_from_checkpoint=str(lora.last_checkpoint))
    half = tmp_path / "checkpoint-3"
    half.mkdir()
    for file in lora.last_checkpoint.iterdir():
        if file.name != "optimizer.pt":
            (half / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks optimizer\.pt"):
        quick(tmp_path, resume_from_checkpoint=str(half))


def test_targets_that_match_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"no such layer.*q_proj"):
        quick(tmp_path, lora_target_modules=["q_prj"])


def test_peft_path_goes_on_from_an_adapter(lora, tmp_path):
    found = quick(tmp_path, peft_path=str(lora.last_checkpoint), max_steps=2)
    assert records(found.output_dir)[0]["loss"] < records(lora.output_dir)[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 0, "SIGTERM"), (signal.SIGHUP, 0, "SIGHUP")],
)
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number, status, name):
    process = prepared.start(
        *(*prepared.LLMTUNE, "sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa", "--max_steps", "100000"),
        *("--logging_steps", "1", "--save_steps", "100000", "--eval_strategy", "no", "--output_dir", tmp_path),
        folder=tmp_path,
    )  # fmt: skip
    process.wait_for("step 3/")
    process.send_signal(number)
    assert process.wait() == status, process.said()
    assert "Traceback" not in process.said()
    (run,) = (tmp_path / "llmtune-tiny").iterdir()
    (checkpoint,) = run.glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) >= 3
    assert (checkpoint / "optimizer.pt").is_file()
    assert f"Interrupted by {name}." in (run / "report.md").read_text()


def test_the_log_has_a_block_before_step_1_and_one_line_per_log_step(tmp_path, capfd):
    quick(tmp_path, max_steps=2, logging_steps=1)
    lines = capfd.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step ") and "eval_loss" not in line]
    number = r"[\d.,e+-]+"
    for step, line in enumerate(steps, 1):
        speed = rf"tokens/s {number}  memory {number} GiB  ETA \d+:\d\d:\d\d"
        assert re.fullmatch(rf"step {step}/2  loss {number}  grad_norm {number}  learning_rate {number}  {speed}", line)
    assert len(steps) == 2
    block = lines[: lines.index(steps[0])]
    names = ["Model", "Data", "Validation", "Training", "Trainable parameters", "Batch", "Steps", "Optimizer"]
    found = [line.partition(":")[0] for line in block if line.partition(":")[0] in [*names, "Checkpoints", "Memory"]]
    assert found == [*names, "Checkpoints", "Memory"]
    assert "Trainable parameters: 28,672 of 1,997,760 (1.44%)" in block
    chosen = block[block.index("Chosen automatically:") + 1 :]
    assert all(re.fullmatch(r"  [\w ]+: .+; .+", line) for line in chosen), "each with its reason"
