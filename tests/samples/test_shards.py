"""Large data in shards: the same samples, encoded once by all who need them, and what a killed job made is kept."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmtune.errors import LlmtuneError, OutputError
from llmtune.samples import shards, store
from llmtune.samples.shards import lock_of, make_shards, shards_of
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.utils import locks

from ..waiting import SECONDS, until

linux = pytest.mark.skipif(sys.platform != "linux", reason="more processes that encode need fork")


@pytest.fixture
def rows() -> Any:
    from llmtune import get_dataset

    train, _ = get_dataset("tiny-qa#47", dataset_test_ratio=0)
    return train


@pytest.fixture
def template() -> Any:
    from llmtune import get_model_tokenizer, get_template

    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    return get_template("chatml", tokenizer)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def samples_of(found: TokenStore) -> list[tuple[Any, ...]]:
    return [
        (found[index]["input_ids"].tolist(), found[index]["labels"].tolist(), found.row_of(index))
        for index in range(len(found))
    ]


def test_shards_hold_what_one_file_holds(rows, template, monkeypatch, cache):
    whole = encode_dataset(rows, template)
    expected, report, lengths = samples_of(whole), whole.report, whole.lengths.tolist()
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    found = encode_dataset(rows, template)
    assert samples_of(found) == expected
    assert found.report == report
    assert found.lengths.tolist() == lengths
    files = sorted(path.relative_to(cache / "tokens") for path in (cache / "tokens").glob("*/*.arrow"))
    assert [path.name for path in files] == [f"{number:05}.arrow" for number in range(5)]
    assert not list(cache.rglob("*.lock"))


@linux
@pytest.mark.medium
def test_several_processes_make_the_same(rows, template, monkeypatch, cache):
    expected = samples_of(encode_dataset(rows, template))
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)
    made = cache.parent / "made"
    made.mkdir()
    own = store._encode

    def workers() -> set[str]:
        return {path.name.split("-")[1] for path in made.iterdir()}

    def encode(dataset: Any, template: Any, shard: Any, **options: Any) -> None:
        (made / f"{shard.start}-{os.getpid()}").touch()
        until(lambda: len(workers()) > 1)  # one alone would be done before the others have started
        own(dataset, template, shard, **options)

    monkeypatch.setattr(store, "_encode", encode)
    assert samples_of(encode_dataset(rows, template, processes=3)) == expected
    by_shard = Counter(path.name.split("-")[0] for path in made.iterdir())
    assert set(by_shard.values()) == {1}, "each once"
    assert len(workers()) > 1


def test_a_damaged_shard_alone_is_made_again(rows, template, monkeypatch, cache, capfd):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    expected = samples_of(encode_dataset(rows, template))
    files = sorted(cache.rglob("*/00*.arrow"))
    times = [path.stat().st_mtime_ns for path in files]
    files[1].write_bytes(files[1].read_bytes()[:-5])
    files[3].with_suffix(".json").unlink()
    assert samples_of(encode_dataset(rows, template)) == expected
    assert "damaged; encoding them again" in capfd.readouterr().err
    changed = [path.stat().st_mtime_ns != time for path, time in zip(files, times, strict=True)]
    assert changed == [False, True, False, True, False]


def test_a_job_goes_on_with_what_a_killed_one_made(rows, template, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    own, made = store._encode, []

    def encode(dataset: Any, template: Any, shard: Any, **options: Any) -> None:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(shard.start)
        own(dataset, template, shard, **options)

    monkeypatch.setattr(store, "_encode", encode)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(rows, template)
    assert made == [0, 10, 20]
    monkeypatch.setattr(store, "_encode", lambda *args, **options: made.append(args[2].start) or own(*args, **options))
    assert len(encode_dataset(rows, template)) == len(rows)
    assert made == [0, 10, 20, 30, 40]


def test_two_jobs_share_the_shards(tmp_path, monkeypatch):
    """Threads stand for jobs: a lock is a file, whoever asks for it."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(shards, "POLL_SECONDS", 0.001)
    parts = shards_of(tmp_path / "key.arrow", 95)
    assert [part.stop - part.start for part in parts] == [10] * 9 + [5]
    made: list[tuple[int, int]] = []
    together = threading.Barrier(2)

    def job(number: int) -> None:
        def make(shard: Any) -> None:
            if len(made) < 2:
                together.wait(SECONDS)  # both are at work at once
            made.append((number, shard.start))
            shard.file.parent.mkdir(exist_ok=True)
            shard.file.write_text("")

        make_shards(parts, make, lambda shard: shard.file.exists(), processes=1, name="training")

    jobs = [threading.Thread(target=job, args=(number,)) for number in (1, 2)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join(SECONDS)
    assert sorted(start for _, start in made) == [part.start for part in parts], "each once"
    assert {number for number, _ in made} == {1, 2}
    assert not lock_of(parts[0].file).exists()


@linux
def test_the_failure_of_a_process_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    parent = os.getpid()

    def make(shard: Any) -> None:
        if os.getpid() != parent:
            raise OutputError("the disk is full")
        shard.file.parent.mkdir(exist_ok=True)
        time.sleep(0.05)
        shard.file.write_text("")

    with pytest.raises(LlmtuneError, match="A process that encoded training rows failed"):
        make_shards(
            shards_of(tmp_path / "key.arrow", 200),
            make,
            lambda shard: shard.file.exists(),
            processes=2,
            name="training",
        )
    assert "llmtune: the disk is full" in capfd.readouterr().err
