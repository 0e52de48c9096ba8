"""The order of samples: a function of seed and epoch, whatever the number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtune import SftArguments, sft
from llmtune.samples.sampler import FILLER, EpochOrder, Numbered, sample_order
from llmtune.training.callbacks import LossWatch

from ..traced import traced_peak


class Lengths:
    """Samples of which only the lengths matter."""

    def __init__(self, lengths: list[int] | np.ndarray) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": np.zeros(self.lengths[index], int), "labels": np.zeros(self.lengths[index], int)}


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)
kinds = st.sampled_from(["random", "by_length", "longest_first"])


@given(lengths, kinds, st.integers(0, 5), st.integers(1, 8), st.integers(1, 4))
def test_each_sample_once_and_whole_batches_for_all(lengths, kind, epoch, step_size, fill_to):
    order = EpochOrder(Lengths(lengths), kind, seed=1, step_size=step_size, fill_to=fill_to)
    order.epoch = epoch
    found = list(order)
    assert len(found) == len(order)
    assert len(found) % fill_to == 0
    assert len(found) - len(lengths) < fill_to
    assert sorted(found[: len(lengths)]) == list(range(len(lengths)))
    assert set(found[len(lengths) :]) <= {FILLER}
    assert list(order) == found


@pytest.mark.parametrize("kind", ["random", "by_length", "longest_first"])
def test_the_order_of_many_rows_takes_few_bytes_of_each(kind):
    samples = Lengths(np.random.default_rng(0).integers(1, 500, 500_000))
    order = EpochOrder(samples, kind, seed=1, step_size=64)
    assert traced_peak(lambda: next(iter(order))) / len(samples) < 32


@given(lengths, kinds, st.integers(0, 3), st.integers(1, 8), st.integers(2, 4))
def test_processes_change_nothing_but_the_filling(lengths, kind, epoch, step_size, fill_to):
    alone = EpochOrder(Lengths(lengths), kind, seed=1, step_size=step_size)
    many = EpochOrder(Lengths(lengths), kind, seed=1, step_size=step_size, fill_to=fill_to)
    alone.epoch = many.epoch = epoch
    assert list(many)[: len(lengths)] == list(alone)


def test_epochs_and_seeds_differ():
    samples = Lengths(list(range(1, 101)))
    orders = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        order = EpochOrder(samples, "random", seed=seed)
        order.epoch = epoch
        orders.append(tuple(order))
    assert len(set(orders)) == 3


def test_steps_of_like_length():
    draw = np.random.default_rng(0)
    samples = Lengths(draw.integers(1, 500, 1000).tolist())

    def padding(kind: str) -> float:
        order = np.array(list(EpochOrder(samples, kind, seed=1, step_size=8)))
        steps = samples.lengths[order].reshape(-1, 8)
        return 1 - steps.sum() / (steps.max(1) * 8).sum()

    assert padding("random") > 0.4
    assert padding("by_length") < 0.05


def test_longest_first():
    assert list(EpochOrder(Lengths([3, 9, 1, 9]), "longest_first", seed=1)) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({}, "random"),
        ({"group_by_length": True}, "by_length"),
        ({"packing": True}, "random"),  # a pack is as long as the others
        ({"group_by_length": True, "test_oom_error": True}, "longest_first"),
        ({"test_oom_error": True}, "longest_first"),
    ],
)
def test_the_order_that_flags_ask_for(flags, kind):
    assert sample_order(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa"], **flags)) == kind


def test_a_filler_is_one_token_and_learns_nothing():
    samples = Numbered(Lengths([3, 4]), pad_token_id=7)
    assert len(samples) == 2
    assert samples[1]["sample"] == 1
    filler = samples[FILLER]
    assert filler["input_ids"].tolist() == [7]
    assert filler["labels"].tolist() == [-100]


@pytest.mark.medium
def test_a_run_meets_each_sample_once_a_pass_in_another_order(tmp_path, monkeypatch):
    met: list[int] = []
    add = LossWatch.add

    def noted(self, loss, samples):
        met.extend(samples.tolist())
        add(self, loss, samples)

    monkeypatch.setattr(LossWatch, "add", noted)
    settings = {
        "model_type": "llmtune-tiny", "dataset": ["tiny-qa#12"], "dataset_test_ratio": 0.0, "num_train_epochs": 3,
        "batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "no", "save_steps": 4,
        "save_total_limit": -1, "output_dir": str(tmp_path),
    }  # fmt: skip
    run = sft(SftArguments(**settings)).output_dir
    passes = [met[start : start + 12] for start in (0, 12, 24)]
    assert [sorted(one) for one in passes] == [list(range(12))] * 3
    assert len({tuple(one) for one in passes}) == 3
    whole = list(met)
    met.clear()
    sft(SftArguments(**settings, resume_from_checkpoint=str(run / "checkpoint-4")))  # in the second pass
    assert met == whole[16:]
