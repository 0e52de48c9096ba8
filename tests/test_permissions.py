"""Every folder that llmtune writes weights into is as open as the umask says, whoever wrote the files in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import (
    ExportArguments,
    GrpoArguments,
    MergeArguments,
    PpoArguments,
    RmArguments,
    SftArguments,
    export,
    grpo,
    merge,
    ppo,
    rm,
    sft,
)
from llmtune.models import tiny
from llmtune.models.loading import get_model_tokenizer
from llmtune.training.engines import save_adapter
from llmtune.utils.files import publish, temporary_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no umask")

ROOT = Path(__file__).parents[1]
STEP: dict[str, Any] = {
    "model_type": "llmtune-tiny", "max_steps": 1, "save_steps": 1, "batch_size": 2, "gradient_accumulation_steps": 1,
    "eval_strategy": "no", "only_save_model": False, "report_to": ["none"],
    "warmup_ratio": 0, "learning_rate": 1e-3,
}  # fmt: skip
ONLINE: dict[str, Any] = {
    "dataset": ["tiny-sums#8"], "max_new_tokens": 4, "num_generations": 2, "rewards": ["accuracy"],
    "val_dataset_sample": 2,
}  # fmt: skip


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def check(folder: Path, umask: int, *wanted: str) -> None:
    """All files of a folder have the umask's access, and those wanted are among them."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(wanted) <= set(files)
    found = {name: oct(stat.S_IMODE(path.stat().st_mode)) for name, path in files.items()}
    assert {name: mode for name, mode in found.items() if mode != oct(0o666 & ~umask)} == {}


def test_safetensors_still_closes_its_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o600, "grant_usual_access can go"


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_checkpoints_of_sft_merges_and_exports(tmp_path, umask, sft_type):
    args = SftArguments(**STEP, dataset=["tiny-qa#4"], sft_type=sft_type, output_dir=str(tmp_path / "runs"))
    saved = sft(args).last_checkpoint
    weights = "adapter_model.safetensors" if sft_type == "lora" else "model.safetensors"
    check(saved, umask, weights, "optimizer.pt", "trainer_state.json", "checkpoint.json")
    check(saved.parent, umask, "logging.jsonl", "report.md", weights)
    if sft_type == "full":
        return
    merge(MergeArguments(ckpt_dir=str(saved), output_dir=str(tmp_path / "merged")))
    check(tmp_path / "merged", umask, "model.safetensors", "config.json")
    export(
        ExportArguments(ckpt_dir=str(saved), output_dir=str(tmp_path / "cut"), merge_lora=True, max_shard_size="2MB")
    )
    check(tmp_path / "cut", umask, "model.safetensors.index.json")
    pytest.importorskip("gguf")
    export(ExportArguments(ckpt_dir=str(saved), output_dir=str(tmp_path / "gguf"), to="gguf"))
    check(tmp_path / "gguf", umask)


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_reward_models(tmp_path, umask, sft_type):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "1 + 1", "chosen": "2", "rejected": "3"}) + "\n")
    args = RmArguments(
        **STEP, dataset=[str(tmp_path / "pairs.jsonl")], sft_type=sft_type, output_dir=str(tmp_path / "runs")
    )
    check(rm(args).last_checkpoint, umask, "checkpoint.json")


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_critics(tmp_path, umask, sft_type):
    found = ppo(PpoArguments(**STEP, **ONLINE, sft_type=sft_type, output_dir=str(tmp_path)))
    check(found.output_dir, umask)
    assert list(found.last_checkpoint.glob("ppo/critic/*.safetensors"))


@pytest.mark.medium
def test_references_of_online_stages(tmp_path, umask):
    found = grpo(GrpoArguments(**STEP, **ONLINE, beta=0.1, sft_type="full", output_dir=str(tmp_path)))
    check(found.output_dir, umask)


def test_adapters_that_a_server_loads(tmp_path, umask):
    from peft import LoraConfig, get_peft_model

    model, _ = get_model_tokenizer("llmtune-tiny", load_tokenizer=False)
    save_adapter(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), tmp_path / "adapter")
    check(tmp_path / "adapter", umask, "adapter_model.safetensors")


def test_the_embedded_model_in_the_cache(tmp_path, umask, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path))
    folder = tiny.tiny_folder()
    assert tmp_path in folder.parents
    check(folder, umask, "model.safetensors")


def test_published_files_and_programs(tmp_path, umask):
    target = tmp_path / "one"
    with temporary_file(target) as temporary:
        temporary.chmod(0o600)
        publish(temporary, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    program = tmp_path / "made" / "run.sh"
    program.parent.mkdir()
    program.touch(0o755)
    publish(program.parent, tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "folder/run.sh").stat().st_mode) == 0o755 & ~umask


WRITERS = ("save_file(", ".save_pretrained(", "torch.save(")
GRANTED = {
    "training/online_reference.py": "publish",
    "training/engines.py": "grant_usual_access",
    "training/critic.py": "part of a checkpoint, which is sealed",
    "training/trainer.py": "seal_checkpoint",
    "merging/merge.py": "atomic_folder",
    "merging/files.py": "in an atomic_folder",
    "exporting/quantize.py": "in the atomic_folder of exporting/export.py",
    "inference/infer.py": "generation_config.json alone",
    "models/vision.py": "settings of a processor, no tensors",
    "models/tiny.py": "publish_over",
    "tuners/score_adapter.py": "part of a checkpoint, which is sealed",
    "tuners/lora.py": "part of a checkpoint, which is sealed",
}


@pytest.mark.parametrize("file", sorted((ROOT / "llmtune").rglob("*.py")), ids=lambda file: file.stem)
def test_every_writer_of_weights_is_known(file: Path):
    writes = any(word in file.read_text(encoding="utf-8") for word in WRITERS)
    name = file.relative_to(ROOT / "llmtune").as_posix()
    assert writes == (name in GRANTED), f"{name} writes weights: publish them, and add the writer to the tests"
