"""`--sequence_parallel_size`: what excludes it is said before anything is read, and all at once."""

from __future__ import annotations

import pytest

from llmtune.arguments.stage import SftArguments
from llmtune.arguments.stages import STAGES, stage_arguments
from llmtune.cli.main import main
from llmtune.errors import ModelError, UsageError
from llmtune.run.resolved import Run
from llmtune.samples.sampler import sample_order

SHARED = {"model_type": "llmtune-tiny", "nproc": 4, "sequence_parallel_size": 2}
TAKE_IT = {"sft", "pt", "dpo", "kto"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sequence_parallel_size": 0}, r"--sequence_parallel_size must be 1 or more"),
        ({"padding_free": False}, r"remove it"),
        ({"attn_impl": "sdpa"}, r"--attn_impl sdpa does not take the bounds"),
        ({"attn_impl": "eager"}, r"--attn_impl eager does not take the bounds"),
        ({"shift_attn": True, "max_length": 64}, r"--shift_attn true attends within parts"),
        ({"neftune_noise_alpha": 5.0}, r"remove --neftune_noise_alpha"),
        ({"device_map": "auto", "nproc": 2}, r"--device_map spreads"),
        ({"torch_compile": True}, r"--torch_compile true compiles layers"),
    ],
)
def test_what_excludes_it(options, said):
    with pytest.raises(UsageError, match=said):
        SftArguments(**SHARED | options)
    if "sequence_parallel_size" not in options:
        SftArguments(**{"model_type": "llmtune-tiny", "nproc": 4} | options)


@pytest.mark.parametrize(("nproc", "has"), [(1, "1 process"), (3, "3 processes")])
def test_processes_that_cannot_be_divided(nproc, has):
    with pytest.raises(UsageError, match=f"groups of 2, and the run has {has}: give --nproc 2, or a multiple"):
        Run.resolve(SftArguments(**SHARED | {"nproc": nproc}), offline=True)
    assert Run.resolve(SftArguments(**SHARED), offline=True)


def test_heads_that_cannot_be_divided_are_refused_before_data_is_read():
    args = SftArguments(**SHARED | {"nproc": 14, "sequence_parallel_size": 7})
    with pytest.raises(ModelError, match=r"attention heads, with .* of keys, cannot be divided among 7 processes"):
        Run.resolve(args)


def test_the_command_refuses_before_it_starts_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sft", "--model_type", "llmtune-tiny", "--nproc", "3", "--sequence_parallel_size", "2"]
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_samples_are_in_the_order_of_a_run_without_padding():
    shared = SftArguments(**SHARED, group_by_length=True)
    alone = SftArguments(model_type="llmtune-tiny", padding_free=True)
    assert sample_order(shared) == sample_order(alone) == "random"
    assert sample_order(SftArguments(model_type="llmtune-tiny", group_by_length=True)) == "by_length"


def test_a_job_has_the_processes_of_its_machines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = ["launch", "--slurm", "true", "--dry_run", "--gpus", "4", "--", "sft", "--model_type", "llmtune-tiny"]
    assert main([*job, "--sequence_parallel_size", "2"]) == 0
    assert "--sequence_parallel_size 2" in capsys.readouterr().out
    assert main([*job, "--sequence_parallel_size", "3"]) == 2
    assert "the run has 4 processes" in capsys.readouterr().err


def test_all_reasons_at_once():
    with pytest.raises(UsageError) as caught:
        SftArguments(**SHARED, attn_impl="sdpa", neftune_noise_alpha=5.0)
    assert "--attn_impl sdpa" in str(caught.value)
    assert "NEFTune" in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_whose_loss_can_be_shared_out(stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    arguments = stage_arguments(stage)
    if stage in TAKE_IT:
        args = arguments(**SHARED)
        assert args.concatenates
        assert args.step_size(4) == arguments(**SHARED | {"sequence_parallel_size": 1}).step_size(2)
        return
    with pytest.raises(UsageError, match=f"it is for sft, pt, dpo and kto, and {stage} cannot"):
        arguments(**SHARED)


@pytest.mark.parametrize(
    ("size", "processes", "text"),
    [(1, 1, ""), (1, 4, " x 4 processes"), (2, 2, " x 1 group of 2 processes"), (2, 4, " x 2 groups of 2 processes")],
)
def test_the_factor_of_a_step(size, processes, text, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    args = SftArguments(model_type="llmtune-tiny", sequence_parallel_size=size)
    assert args.processes_text(processes) == text
