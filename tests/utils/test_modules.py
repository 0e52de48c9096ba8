"""Python files that the user names are imported once, and leave nothing behind where they fail."""

from __future__ import annotations

import sys

import pytest

from llmtune.utils.modules import import_file


def test_a_file_is_imported_once(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("made = object()\n")
    first = import_file(file)
    file.write_text("1 / 0\n")
    assert import_file(file) is first
    assert first.__name__ in sys.modules


def test_files_of_one_name_are_told_apart(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(f"value = {name!r}\n")
    assert [import_file(tmp_path / name / "own.py").value for name in "ab"] == ["a", "b"]


def test_a_file_that_fails_is_tried_again(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        import_file(file)
    assert set(sys.modules) == before
    file.write_text("value = 1\n# longer, for the cache of bytecode\n")
    assert import_file(file).value == 1


def test_other_files_are_refused(tmp_path):
    (tmp_path / "own.txt").write_text("value = 1\n")
    with pytest.raises(ImportError, match=r"own\.txt is not a Python file"):
        import_file(tmp_path / "own.txt")
