"""The trainer knows an objective by its contract alone: counts of a whole step, shares that add up, metrics as sums."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from llmtune.training.cross_entropy import CrossEntropy
from llmtune.training.objective import Metrics, Share, Totals
from llmtune.training.trainer import StageTrainer
from llmtune.types import IGNORE_INDEX


class Sequences:
    """An objective that counts sequences: the mean over them of a weight's square."""

    divergence_limit = None
    measures = False
    train_metrics = ("size",)
    eval_metrics = ("loss",)

    def __init__(self) -> None:
        self.counted: list[int] = []
        self.seen: list[Totals] = []

    def count(self, batch: Mapping[str, Any]) -> Totals:
        self.counted.append(len(batch["x"]))
        return Totals(torch.tensor(len(batch["x"])), torch.tensor(0))

    def share(self, model: Any, batch: dict[str, Any], totals: Totals | None) -> Share:
        assert totals is not None
        self.seen.append(totals)
        losses = model(batch["x"]).square()
        return Share(losses.sum() / totals.sequences, {"size": [(losses.sum(), torch.tensor(len(losses)))]})


def trainer_of(objective: Any) -> Any:
    trainer: Any = StageTrainer.__new__(StageTrainer)
    trainer.objective = objective
    trainer.args = type("Args", (), {"world_size": 1})()
    trainer._train_metrics = Metrics(objective.train_metrics)
    return trainer


def test_totals_of_a_step_are_known_before_its_first_forward_and_shares_add_up():
    objective = Sequences()
    trainer = trainer_of(objective)
    batches = [{"x": torch.ones(3, 1)}, {"x": torch.ones(1, 1)}]
    trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    assert objective.counted == [3, 1]
    model = torch.nn.Linear(1, 1)
    shares = [trainer.compute_loss(model, batch) for batch in batches]
    assert [int(totals.sequences) for totals in objective.seen] == [4, 4]
    whole = model(torch.ones(4, 1)).square().mean()
    assert float(sum(shares)) == pytest.approx(float(whole))
    assert trainer._train_metrics.take() == pytest.approx({"size": float(whole)})
    assert trainer._train_metrics.take() == {}


def test_metrics_are_quotients_of_sums_in_double_precision():
    metrics = Metrics(["loss", "unseen"])
    for total, count in ((0.1, 1), (0.2, 2)):
        metrics.add({"loss": [(torch.tensor(total, dtype=torch.float64), torch.tensor(count))]})
    assert metrics.take() == {"loss": (0.1 + 0.2) / 3}


def test_a_metric_of_several_quotients_is_their_sum():
    metrics = Metrics(["margin"])
    for good, bad in ((3.0, 1.0), (5.0, 2.0)):
        metrics.add({"margin": [(torch.tensor(good), torch.tensor(1)), (torch.tensor(-bad), torch.tensor(3))]})
    assert metrics.take() == {"margin": 8.0 / 2 - 3.0 / 6}


def test_what_a_step_measures_is_settled_before_its_first_forward():
    class Measuring(Sequences):
        measures = True

        def measure(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
            return batch["x"].sum().reshape(1)

        def settle(self, sums: torch.Tensor) -> None:
            self.settled = sums.tolist()

    objective = Measuring()
    trainer = trainer_of(objective)
    trainer.model_wrapped = None
    trainer._prepare_inputs = lambda inputs: inputs
    trainer.compute_loss_context_manager = contextlib.nullcontext
    trainer._get_num_items_in_batch([{"x": torch.ones(3, 1)}, {"x": 2 * torch.ones(1, 1)}], torch.device("cpu"))
    assert objective.settled == [5.0]
    assert objective.seen == []


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_counts_labels_that_a_token_comes_before(weighted):
    labels = torch.tensor([[5, 6, IGNORE_INDEX], [IGNORE_INDEX, 7, 8]])
    totals = CrossEntropy(100, weighted=weighted).count({"labels": labels})
    assert (int(totals.sequences), float(totals.tokens)) == (2, 3.0)
