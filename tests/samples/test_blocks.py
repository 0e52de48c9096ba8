"""Blocks of joined documents: together they are the concatenation, and each token of it is a label once."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from llmtune.data.canonical import to_record
from llmtune.models.loading import get_model_tokenizer
from llmtune.samples.blocks import JoinedDataset, blocks_text, join_blocks
from llmtune.samples.packing import PackedDataset, packs_text
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.templates.lookup import get_template
from llmtune.types import IGNORE_INDEX, Conversation, Message

TEXTS = ["One sun.", "Two moons and many stars.", "三个月亮。", "four " * 40, "five"]


@pytest.fixture(scope="module")
def store() -> TokenStore:
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    rows = [to_record(Conversation((Message("assistant", text, loss=True),))) for text in TEXTS]
    template = get_template("chatml", tokenizer, documents="joined")
    return encode_dataset(Dataset.from_list(rows), template)


def concatenation(store: TokenStore) -> list[int]:
    return [int(token) for sample in store for token in sample["input_ids"]]


@pytest.mark.parametrize("size", [2, 3, 7, 16, 64, 1000])
def test_blocks_are_the_concatenation(store, size):
    whole = concatenation(store)
    blocks = JoinedDataset(store, size)
    found = [blocks[index] for index in range(len(blocks))]
    ids = [*found[0]["input_ids"], *(token for block in found[1:] for token in block["input_ids"][1:])]
    assert ids == whole, "no id is overwritten, and the last incomplete block is kept"
    labels = [label for block in found for label in block["labels"] if label != IGNORE_INDEX]
    assert labels == whole[1:], "each token but the very first is a label once"
    assert [len(block["input_ids"]) for block in found] == blocks.lengths.tolist()
    assert set(blocks.lengths[:-1]) <= {size}
    assert all(block["labels"][0] == IGNORE_INDEX for block in found)
    assert not any("position_ids" in block for block in found), "attention crosses documents"


@pytest.mark.parametrize("size", [2, 7, 16, 1000])
def test_rows_of_a_block_are_those_with_its_tokens(store, size):
    owners = np.repeat(np.arange(len(store)), store.lengths)
    blocks = JoinedDataset(store, size)
    for index in range(len(blocks)):
        start, end = blocks._bounds[index]
        assert blocks.rows_of(index) == sorted(set(owners[start:end].tolist()))
    with pytest.raises(IndexError):
        blocks.rows_of(len(blocks))


@pytest.mark.parametrize("size", [2, 7, 16, 1000])
def test_blocks_of_a_stream_are_the_same(store, size):
    samples = [sample | {"sample": index} for index, sample in enumerate(store)]
    blocks = JoinedDataset(store, size)
    streamed = join_blocks(samples, size)
    assert len(streamed) == len(blocks)
    for index, block in enumerate(streamed):
        assert block["input_ids"].tolist() == blocks[index]["input_ids"].tolist()
        assert block["labels"].tolist() == blocks[index]["labels"].tolist()
        assert block["sample"] == blocks.rows_of(index)[0]
    assert join_blocks([], size) == []


def test_the_store_is_not_changed(store):
    before = [sample["labels"].tolist() for sample in store]
    JoinedDataset(store, 1000)[0]
    join_blocks([sample | {"sample": 0} for sample in store], 1000)
    assert [sample["labels"].tolist() for sample in store] == before


def test_the_line_of_the_log(store):
    total = len(concatenation(store))
    blocks = JoinedDataset(store, 16)
    last = int(blocks.lengths[-1])
    assert last == total - 15 * (len(blocks) - 1)
    assert blocks_text(blocks).startswith(f"{len(blocks)} of 16 tokens, attention crosses documents; the last one has")
    assert blocks_text(JoinedDataset(store, total)) == f"1 of {total} tokens, attention crosses documents"
    assert blocks_text(PackedDataset(store, total)) == packs_text(blocks) == ""


def test_weights_stay_with_their_tokens(store):
    samples = [sample | {"sample": index} for index, sample in enumerate(store)]
    samples[1]["loss_weights"] = np.full(len(samples[1]["labels"]), 0.5, np.float32)
    (block,) = join_blocks(samples, 10_000)
    owners = np.repeat(np.arange(len(store)), store.lengths)
    assert (block["loss_weights"] == np.where(owners == 1, 0.5, 1.0)).all()
