"""What is written appears whole; what killed processes left vanishes; what others are writing stays."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmtune.errors import OutputError
from llmtune.utils import files as atomic
from llmtune.utils.files import (
    atomic_folder,
    is_whole,
    publish,
    publish_over,
    seal_of,
    sweep,
    temporary_file,
    temporary_folder,
    write_json,
    write_text,
)

WRITE = """
import os, sys, time
from pathlib import Path
from typing import Any
from llmtune.utils.files import temporary_file, temporary_folder
place = Path(sys.argv[1])
with temporary_file(place / "a.json") as file, temporary_folder(place / "kg-merged") as folder:
    file.write_text("half")
    (folder / "weights").write_bytes(bytes(1000))
    print("written", flush=True)
    time.sleep(60)
"""


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_what_a_killed_process_left_is_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        write_text(tmp_path / "b.json", "")
        assert len(hidden(tmp_path)) == 2  # it is still at it
        process.send_signal(signal.SIGKILL)
    assert len(hidden(tmp_path)) == 2
    with atomic_folder(tmp_path / "other") as folder:
        (folder / "x").write_text("x")
    assert hidden(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "other"]


def test_other_machines_are_given_a_day(tmp_path):
    for name in (".a.0123abcd-1-0123abcd.tmp", ".b.0123abcd-1-0123abcd.tmp", ".writing-x1", ".keep"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.0123abcd-1-0123abcd.tmp" / "weights").write_text("just now")
    for path in tmp_path.iterdir():
        os.utime(path, times=(time.time() - 2 * atomic.LEFT_SECONDS,) * 2)
    sweep(tmp_path)
    assert sorted(hidden(tmp_path)) == [".b.0123abcd-1-0123abcd.tmp", ".keep", ".writing-x1"]
    sweep(tmp_path, is_ours=True)
    assert hidden(tmp_path) == [".b.0123abcd-1-0123abcd.tmp"]
    sweep(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.json", "x" * 255, "数" * 85, ".hidden"])
def test_names_of_every_length(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda one, other: synced.append("renamed") or replace(one, other))
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
    parts = [os.path.relpath(path, folder) if path != "renamed" else path for path in synced]
    assert sorted(parts[:3]) == [".", "inner", "inner/file"]
    assert parts[3:] == ["renamed", ".."]
    synced.clear()
    write_json(tmp_path / "a.json", {})
    assert [path == "renamed" for path in synced] == [False, True, False]


@pytest.mark.parametrize(("number", "is_fault"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_disk_that_cannot_sync_is_taken_and_one_that_fails_is_not(tmp_path, monkeypatch, number, is_fault):
    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    if is_fault:
        with pytest.raises(OutputError, match="Cannot write"):
            write_text(tmp_path / "a", "new")
    else:
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == ("old" if is_fault else "new")
    assert hidden(tmp_path) == []


def test_a_folder_over_another_of_its_name(tmp_path):
    """Files of the same name are replaced, so that who has the old one open reads on; others stay."""
    for there in (None, "file", "folder", "link"):
        target = tmp_path / f"over {there}"
        if there == "file":
            target.write_text("x")
        elif there == "link":
            target.symlink_to(tmp_path / "nowhere")
        elif there == "folder":
            target.mkdir()
            (target / "a").write_text("old")
            (target / "kept").write_text("kept")
        with temporary_folder(target) as folder:
            for name in "ab":
                (folder / name).write_text("new")
            publish_over(folder, target)
        texts = {file.name: file.read_text() for file in target.iterdir()}
        assert texts == {"a": "new", "b": "new"} | ({"kept": "kept"} if there == "folder" else {})
    assert hidden(tmp_path) == []


def test_a_file_takes_the_place_of_whatever_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    with temporary_folder(tmp_path / "c") as folder, pytest.raises(OSError, match=r"[Nn]ot a directory"):
        publish(folder, tmp_path / "a")
    assert hidden(tmp_path) == []


def test_two_who_make_one_folder(tmp_path):
    def second() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("y")

    def first() -> None:
        with atomic_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("x")
            second()

    with pytest.raises(OutputError, match="exists already"):
        first()
    assert (tmp_path / "a" / "x").read_text() == "y"
    assert hidden(tmp_path) == []


def test_a_failure_leaves_nothing(tmp_path):
    def fail(writing: Any) -> None:
        with writing(tmp_path / "a") as path:
            (path if path.is_file() else path / "x").write_text("half")
            raise ZeroDivisionError

    for writing in (temporary_file, atomic_folder):
        with pytest.raises(ZeroDivisionError):
            fail(writing)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_text(tmp_path / "file" / "a", "")


def test_rights_follow_the_mask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        with atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o750]


def test_seals(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(os.urandom(3 << 20))
    seal = seal_of(file)
    assert is_whole(file, seal)
    raw = file.read_bytes()
    for damaged in (
        b"",
        raw[:-1],
        raw[:100] + bytes(1) + raw[101:] if raw[100] else raw[1:],
        bytes(len(raw)),
        raw + b"x",
    ):
        file.write_bytes(damaged)
        assert not is_whole(file, seal)
    for wrong in (None, [], {}, 3, "x", [1], [None, None], [len(raw), "x"]):
        file.write_bytes(raw)
        assert not is_whole(file, wrong)
    file.unlink()
    assert not is_whole(file, seal)


@pytest.mark.parametrize(
    "err",
    [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)"),
     Exception("Error while serializing: I/O error: No space left on device")],
)  # fmt: skip
def test_a_full_disk_is_an_output_error(tmp_path, err):
    expected = pytest.raises(OutputError, match=r"Cannot write .*model: [Nn]o space left.*Free some space")
    with expected, atomic_folder(tmp_path / "model"):
        raise err
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("something else")
