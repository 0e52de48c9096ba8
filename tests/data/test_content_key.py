"""The key of files: by their content, which is not read again where large files have not changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llmtune.data import content_key as module
from llmtune.data.content_key import content_key
from llmtune.data.rows import new_digest
from llmtune.utils.files import cache_root


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    monkeypatch.setattr(module, "QUIET_SECONDS", -60.0)  # the files of this test count as old


def key_of(*files: Path, of: object = "rules") -> str:
    return content_key(new_digest(of), [(file.name, file) for file in files])


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("read again"))


def test_large_files_are_read_once(tmp_path, monkeypatch):
    files = [write(tmp_path / "a.jsonl", "1"), write(tmp_path / "b.jsonl", "2")]
    found = key_of(*files)
    unread(monkeypatch)
    assert key_of(*files) == found


def test_the_kept_key_is_that_of_the_content(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", "1")
    kept = [key_of(file) for _ in range(2)]
    monkeypatch.setattr(module, "KEPT_BYTES", 1 << 28)
    assert [key_of(file)] * 2 == kept
    assert new_digest("rules").hexdigest() != kept[0]


@pytest.mark.parametrize("change", ["content", "same size and time", "another file in its place", "rules", "name"])
def test_what_changes_is_read_again(tmp_path, change):
    file = write(tmp_path / "a.jsonl", "1" * 9)
    before, state = key_of(file), file.stat()
    of = "rules"
    if change == "content":
        write(file, "1" * 10)
    elif change == "same size and time":
        write(file, "2" * 9)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "another file in its place":
        other = write(tmp_path / "b.jsonl", "3" * 9)
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.rename(file)
    elif change == "rules":
        of = "other rules"
    else:
        file = file.rename(tmp_path / "c.jsonl")
    assert key_of(file, of=of) != before


def test_a_file_that_was_just_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 60.0)
    file = write(tmp_path / "a.jsonl", "1")
    key_of(file)
    assert not (cache_root() / "keys").exists()
    monkeypatch.setattr(time, "time", lambda: file.stat().st_mtime + 61)
    key_of(file)
    assert len(list((cache_root() / "keys").iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"key": 1}', '{"key": "x"}', "\0\0\0"])
def test_a_damaged_note_is_not_believed(tmp_path, text):
    file = write(tmp_path / "a.jsonl", "1")
    found = key_of(file)
    (note,) = (cache_root() / "keys").iterdir()
    note.write_text(text)
    assert key_of(file) == found


def test_a_cache_that_cannot_be_written_only_reads_again(tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    file = write(tmp_path / "a.jsonl", "1")
    assert key_of(file) == key_of(file)
