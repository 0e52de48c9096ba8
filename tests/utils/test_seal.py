"""Seals of records: what this user wrote, unchanged, and nothing else."""

from __future__ import annotations

import hmac
import json
import os
from typing import Any

import pytest

from llmtune.utils.seal import KEY_BYTES, SEAL, is_own, sealed, with_changes

RECORD: dict[str, Any] = {"model_id_or_path": "models/mine", "lora_rank": 8, "dataset": ("a", "b"), "system": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read_back(record: Any) -> Any:
    return json.loads(json.dumps(record))


def test_a_record_is_own_until_anything_of_it_changes():
    record = read_back(sealed(RECORD))
    assert is_own(record)
    assert is_own(dict(reversed(record.items())))
    assert {name: value for name, value in record.items() if name != SEAL} == read_back(RECORD)
    changed: list[dict[str, Any]] = [record | {name: "other"} for name in record]
    changed += [{name: value for name, value in record.items() if name != gone} for gone in record]
    changed += [record | {"added": 1}, record | {SEAL: None}, record | {SEAL: 3}, record | {SEAL: "é"}, RECORD, {}]
    assert not any(is_own(one) for one in changed)


def test_own_changes_are_sealed_again_and_foreign_ones_are_not():
    own = with_changes(sealed(RECORD), lora_rank=16)
    assert is_own(own)
    assert own["lora_rank"] == 16
    strange = with_changes(RECORD | {SEAL: "0" * 64}, lora_rank=16)
    assert SEAL not in strange
    assert strange == RECORD | {"lora_rank": 16}


def test_another_user_has_another_key(tmp_path, monkeypatch):
    record = sealed(RECORD)
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "of another"))
    assert not is_own(record)
    assert list(tmp_path.glob("of another/*")) == [], "to ask makes no key"
    assert sealed(RECORD)[SEAL] != record[SEAL]


def test_the_seal_is_an_hmac_with_a_key_that_others_cannot_read(cache):
    found = sealed(RECORD)[SEAL]
    assert [file.name for file in cache.iterdir()] == ["seal.key"]
    assert (cache / "seal.key").stat().st_mode & 0o777 == 0o600
    key = (cache / "seal.key").read_bytes()
    assert len(key) == KEY_BYTES >= 32
    text = json.dumps(RECORD, sort_keys=True)
    assert found == hmac.new(key, text.encode(), "sha256").hexdigest()
    assert sealed(RECORD)[SEAL] == found, "the key stays"


def test_without_a_whole_key_nothing_is_own(cache, monkeypatch):
    record = sealed(RECORD)
    (cache / "seal.key").write_bytes(b"")
    assert not is_own(record | {SEAL: hmac.new(b"", json.dumps(RECORD, sort_keys=True).encode(), "sha256").hexdigest()})
    assert sealed(RECORD) == RECORD
    (cache / "seal.key").unlink()
    assert not is_own(record)

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert sealed(RECORD) == RECORD
