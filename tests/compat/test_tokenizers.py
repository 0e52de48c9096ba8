"""Tokenizers without a second vocabulary: the same ids, files and copies."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import TokenizersBackend

from llmtune.compat.tokenizers import drop_copies

VOCABULARY = {"a": 0, "b": 1, "ab": 2, "<e>": 3}


class Keeps(TokenizersBackend):
    """As those of transformers: keeps what its tokenizer was built from."""

    model = BPE

    def __init__(self, vocab: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None, **kwargs):
        self._vocab = vocab or dict(VOCABULARY)
        self._merges = merges or [("a", "b")]
        self._tokenizer = Tokenizer(BPE(vocab=self._vocab, merges=self._merges))
        super().__init__(eos_token="<e>", **kwargs)


class Reads(Keeps):
    """Reads one of them later, within a function of its own."""

    def first_merge(self) -> list[tuple[str, str]]:
        return [merge for merge in self._merges for _ in range(1)]


def test_nothing_changes_but_the_copies(tmp_path: Path) -> None:
    whole, light = Keeps(), Keeps()
    drop_copies(light)
    assert not {"_vocab", "_merges"} & vars(light).keys()
    assert light("abba<e>")["input_ids"] == whole("abba<e>")["input_ids"] == [2, 1, 0, 3]
    assert light.get_vocab() == whole.get_vocab()
    assert len(light) == len(whole)
    light.save_pretrained(tmp_path / "light")
    whole.save_pretrained(tmp_path / "whole")
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "light").iterdir())
    for name in names:
        assert (tmp_path / "light" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for other in (copy.deepcopy(light), pickle.loads(pickle.dumps(light))):
        assert other("ab")["input_ids"] == [2]


def test_what_a_method_reads_stays() -> None:
    tokenizer = Reads()
    drop_copies(tokenizer)
    assert "_vocab" not in vars(tokenizer)
    assert tokenizer.first_merge() == [("a", "b")]


def test_other_objects_are_left_alone() -> None:
    drop_copies(object())
