"""Commands that the board starts: no run depends on a reader, and no server outlives the board."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llmtune.board.children import WarmHelper, _environment, reap, run_of, start
from llmtune.errors import LlmtuneError, UsageError
from llmtune.run.queue import Queue

from ..waiting import SECONDS, until
from .conftest import run_async

PIPE_BYTES = 65_536
"""What a pipe holds: a child that writes more waits for a reader."""


@pytest.mark.medium
def test_a_child_never_waits_for_a_reader(tmp_path):
    """LlamaBoard read its pipe in the page that watched: without a page, training stood still after 64 KiB of log."""
    run = tmp_path / "output/tiny/v0-a"
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "finished"}')
    (run / "run.log").write_text("step 1/2  loss 3\n" * 20_000)
    started = start(tmp_path, ["runs", "tail", "last", "--lines", "20000"])
    assert started.process.wait(SECONDS) == 0
    assert started.log.stat().st_size > PIPE_BYTES
    reap()


def test_children_do_not_get_the_key(monkeypatch):
    monkeypatch.setenv("LLMTUNE_BOARD_KEY", "secret")
    assert "secret" not in _environment().values()


@pytest.mark.medium
def test_a_start_that_is_refused_says_why(tmp_path):
    started = start(tmp_path, ["sft", "--model_type", "llmtune-tiny", "--dataset", "tiny-qaa"])
    with pytest.raises(UsageError, match="Did you mean 'tiny-qa'"):
        run_async(run_of(started, tmp_path))


@pytest.mark.medium
def test_a_leashed_child_ends_with_its_parent(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom llmtune.board.children import start\n"
        "words = ['board', '--port', '0', '--root', sys.argv[1]]\n"
        "print(start(Path(sys.argv[1]), words, leashed=True).process.pid, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    assert child.is_running()
    parent.kill()
    parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow
def test_the_helper_answers_refuses_and_comes_back(tmp_path):
    words = ["--model_type", "llmtune-tiny", "--dataset", "tiny-qa#20"]

    async def work() -> None:
        helper = WarmHelper(tmp_path)
        assert (await helper.ask("plan", "sft", words))["fits"] is True
        with pytest.raises(LlmtuneError, match="--lora_rank must be"):
            await helper.ask("dry_run", "sft", [*words, "--lora_rank", "0"])
        assert helper._process is not None
        helper._process.kill()
        await helper._process.wait()
        assert (await helper.ask("dry_run", "sft", words))["rows"]
        helper.close()

    run_async(work())


# The queue


def test_queued_runs_are_taken_once_and_in_order(tmp_path):
    queue = Queue(tmp_path)
    queue.add("sft", "_stage: sft\nmodel_type: llmtune-tiny\ndataset: [tiny-qa]\n")
    queue.add("dpo", "model_type: b\nrun_name: second\n", "0, 1")
    assert [(one.stage, one.gpus, one.title) for one in queue.waiting()] == [
        ("sft", "", "llmtune-tiny  tiny-qa"), ("dpo", "0,1", "second  b"),
    ]  # fmt: skip
    first, second = queue.take_next(), Queue(tmp_path).take_next()
    assert first is not None
    assert second is not None
    assert first.words == ["sft", "--config", str(first.file)]
    assert (second.stage, Queue(tmp_path).take_next()) == ("dpo", None)
    assert "model_type: llmtune-tiny" in first.file.read_text()
    assert queue.add("sft", "seed: 1").name == "0003.yaml", "numbers of started runs are not given again"


@pytest.mark.parametrize("gpus", ["a", "0;rm", "-1", "0,,1"])
def test_gpus_are_numbers(tmp_path, gpus):
    with pytest.raises(UsageError, match="GPUs are numbers"):
        Queue(tmp_path).add("sft", "", gpus)


def test_a_run_waits_for_its_gpus(tmp_path, monkeypatch):
    queue = Queue(tmp_path)
    queue.add("sft", "seed: 1", "0")
    queue.add("sft", "seed: 2", "1")
    monkeypatch.setattr(Queue, "_busy", lambda self: ({"0"}, False))
    taken = queue.take_next()
    assert taken is not None
    assert taken.gpus == "1"
    monkeypatch.setattr(Queue, "_busy", lambda self: (set(), True))
    assert queue.take_next() is None


@pytest.mark.parametrize("text", ["", "[", "\x00", "_stage: nowhere", "- a"])
def test_broken_queue_files_are_shown_and_can_be_removed(tmp_path, text):
    queue = Queue(tmp_path)
    file = queue.add("sft", "")
    file.write_text(text)
    (tmp_path / "output/.queue/notes.txt").write_text("mine")
    (one,) = queue.waiting()
    assert one.stage == "sft"
    queue.remove("../../x")
    queue.remove(one.file.name)
    assert queue.waiting() == []
    assert Path(tmp_path / "output/.queue/notes.txt").is_file()
