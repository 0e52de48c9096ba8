"""Which checkpoint a run goes on from: whole ones alone, the newest first."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmtune import SftArguments, sft
from llmtune.checkpoint import last_checkpoint, rotate, what_is_missing
from llmtune.errors import CheckpointError, OutputError
from llmtune.run.resume import resume_run
from llmtune.training.trainer import StageTrainer

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-qa#16"], "max_steps": 6, "save_steps": 2, "save_total_limit": -1,
    "batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "no", "dataset_test_ratio": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return sft(SftArguments(**RUN, output_dir=str(tmp_path_factory.mktemp("run")))).output_dir


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "llmtune-tiny" / made.name))


def resumable(run: Path, where: str | Path = "last", **options: Any) -> Path | None:
    settings = RUN | {"output_dir": str(run.parent.parent), "resume_from_checkpoint": str(where)} | options
    return resume_run(SftArguments(**settings))[1]


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


BREAKS: list[Callable[[Path], object]] = [
    lambda folder: shorten(folder / "optimizer.pt"),
    lambda folder: shorten(folder / "adapter_model.safetensors"),
    lambda folder: (folder / "rng_state.pth").unlink(),
    lambda folder: (folder / "trainer_state.json").unlink(),
    lambda folder: (folder / "tokenizer.json").unlink(),
]


@pytest.mark.parametrize("spoil", BREAKS, ids=["optimizer", "weights", "random state", "state", "tokenizer"])
def test_a_half_written_one_is_passed_over(run, spoil, capsys):
    assert what_is_missing(run / "checkpoint-6") == ""
    assert resumable(run) == run / "checkpoint-6"
    spoil(run / "checkpoint-6")
    assert resumable(run) == resumable(run, run) == run / "checkpoint-4"
    assert "checkpoint-6" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="Resume from another checkpoint"):
        resumable(run, run / "checkpoint-6")


def test_resuming_is_refused_if_no_checkpoint_is_complete(run):
    for folder in run.glob("checkpoint-*"):
        shorten(folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint-6 has .* bytes of optimizer\.pt"):
        resumable(run)


def test_last_is_that_of_the_newest_run_with_one(run):
    for number in (9, 10):
        shutil.copytree(run, run.parent / f"v{number}-20261121-000000")
    (run.parent / "v11-20261121-000000").mkdir()
    assert resumable(run) == run.parent / "v10-20261121-000000/checkpoint-6"


def test_last_of_nothing_begins(tmp_path, capsys):
    assert resumable(tmp_path / "llmtune-tiny" / "v0") is None
    assert "so this is a new run" in capsys.readouterr().err


def test_another_number_of_samples_a_step(run):
    assert resumable(run, batch_size=4, gradient_accumulation_steps=1) == run / "checkpoint-6"
    with pytest.raises(CheckpointError, match=r"4 samples per step, but this command has 8 .*Use the same product"):
        resumable(run, batch_size=4)


def test_resuming_under_another_sharding_strategy_is_refused(run):
    with pytest.raises(CheckpointError, match="neither --fsdp nor --deepspeed_config_path"):
        resumable(run, deepspeed_config_path="zero2")


@pytest.mark.parametrize(("num_processes", "resumes"), [(1, True), (2, False), (4, False)])
@pytest.mark.parametrize("strategy", ["", "deepspeed"])
def test_deepspeed_resumes_with_as_many_processes_and_ddp_with_any(run, strategy, num_processes, resumes, capsys):
    seal = json.loads((run / "checkpoint-6/checkpoint.json").read_text())
    seal |= {"strategy": strategy, "world_size": num_processes}
    (run / "checkpoint-6/checkpoint.json").write_text(json.dumps(seal))
    options = {"deepspeed_config_path": "zero2"} if strategy else {}
    if resumes or not strategy:
        assert resumable(run, **options) == run / "checkpoint-6"
        assert (f"Resuming with 1 processes instead of {num_processes}" in capsys.readouterr().err) is not resumes
    else:
        with pytest.raises(CheckpointError, match=f"over {num_processes} processes, but this run has 1"):
            resumable(run, **options)


def test_a_failed_save_leaves_no_trace(tmp_path, monkeypatch):
    from llmtune.training import trainer

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "complete_checkpoint", full)
    with pytest.raises(OutputError, match=r"checkpoint-2 could not be saved \(No space left on device\)"):
        sft(SftArguments(**RUN, output_dir=str(tmp_path)))
    (run,) = (tmp_path / "llmtune-tiny").iterdir()
    assert last_checkpoint(run) is None
    assert not list(run.glob(".saving*"))


class InBackground:
    """Saves whose shares are written by a thread, as those of FSDP with --async_save are; one or other of them fails.

    Attributes:
        seen: What the run's folder held while they were written.
    """

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = iter(failures)
        self.seen: list[list[str]] = []
        self.threads = ThreadPoolExecutor(1)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = StageTrainer.__init__

        def init(trainer: Any, *args: Any, **options: Any) -> None:
            own(trainer, *args, **options)
            trainer._background = self
            self.folder = Path(trainer.args.output_dir)

        monkeypatch.setattr(StageTrainer, "__init__", init)

    @contextlib.contextmanager
    def divert(self) -> Iterator[list[Future[Any]]]:
        running: list[Future[Any]] = []
        yield running
        running.append(self.threads.submit(self._write, next(self.failures)))

    def _write(self, failure: Exception | None) -> None:
        time.sleep(0.1)
        self.seen.append(sorted(path.name for path in self.folder.glob("checkpoint-*")))
        if failure is not None:
            raise failure


def test_a_checkpoint_appears_when_its_last_share_is_written(tmp_path, monkeypatch, capsys):
    saves = InBackground(None, None, None)
    saves.install(monkeypatch)
    run = sft(SftArguments(**RUN, output_dir=str(tmp_path))).output_dir
    assert saves.seen == [[], ["checkpoint-2"], ["checkpoint-2", "checkpoint-4"]]
    assert capsys.readouterr().err.count("was written in the background") == 3
    assert resumable(run) == run / "checkpoint-6"


@pytest.mark.parametrize(("failing", "whole"), [(0, None), (1, "checkpoint-2"), (2, "checkpoint-4")])
def test_a_share_that_cannot_be_written_in_the_background_seals_nothing(tmp_path, monkeypatch, failing, whole):
    saves = InBackground(*[OSError(28, "No space left on device") if n == failing else None for n in range(3)])
    saves.install(monkeypatch)
    with pytest.raises(OutputError, match=rf"checkpoint-{2 * failing + 2} could not be saved .*No space left"):
        sft(SftArguments(**RUN, output_dir=str(tmp_path)))
    (run,) = (tmp_path / "llmtune-tiny").iterdir()
    assert last_checkpoint(run) == (run / whole if whole else None)
    assert not list(run.glob(".saving*"))


@pytest.fixture
def numbered(tmp_path) -> Callable[..., list[int]]:
    """Make checkpoint-N of these steps, the highest with the oldest clock; rotate; the steps that are left."""

    def left(*steps: int, keep: int | None, best: int | None, newest: int) -> list[int]:
        for age, step in enumerate(steps):
            (tmp_path / f"checkpoint-{step}").mkdir()
            os.utime(tmp_path / f"checkpoint-{step}", (1e9 - age * 1e6, 1e9 - age * 1e6))
        (tmp_path / "checkpoint-of-mine").mkdir()
        names = {step: tmp_path / f"checkpoint-{step}" for step in steps}
        rotate(tmp_path, keep, best=None if best is None else names[best], newest=names[newest])
        return sorted(int(path.name[11:]) for path in tmp_path.glob("checkpoint-*") if path.name[11:].isdigit())

    return left


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [(2, None, [8, 10]), (2, 4, [4, 10]), (1, 4, [4, 10]), (1, None, [10]), (3, 2, [2, 8, 10]),
     (None, None, [2, 4, 6, 8, 10]), (1, 10, [10])],
)  # fmt: skip
def test_rotation_goes_by_step_whatever_the_clocks_say(numbered, keep, best, expected):
    assert numbered(2, 4, 6, 8, 10, keep=keep, best=best, newest=10) == expected
