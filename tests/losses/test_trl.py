"""The losses on a model equal those of trl's trainers on the same ids. trl is the oracle of tests, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llmtune.losses.info import LOSS_MAPPING
from llmtune.losses.terms import Options
from llmtune.models.score import install_scores
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.models.tiny import tiny_folder
from llmtune.samples.collate import PaddingCollator
from llmtune.samples.comparisons import COMPARISONS, REFERENCE, ComparisonCollator, stored_comparison, with_partner
from llmtune.samples.labelled import LabelledCollator
from llmtune.templates.comparisons import EncodedComparison, EncodedResponse
from llmtune.training.labelled import LabelledLoss
from llmtune.training.preference import PreferenceLoss, WeightedLoss
from llmtune.training.reward import RewardLoss

pytestmark = pytest.mark.medium

OPTIONS = Options(beta=0.2, label_smoothing=0.1, tau=0.07, desirable_weight=1.3, undesirable_weight=0.7)
PAIRS = ("sigmoid", "robust", "hinge", "ipo", "sigmoid_norm", "exo_pair", "nca_pair", "sppo_hard", "apo_zero")
PAIRS = (*PAIRS, "apo_down", "discopop", "sft")
ELSEWHERE = {"cpo", "simpo", "orpo"}
"""Losses that trl 1.16 has in experimental trainers on whole logits only; by formula in test_losses.py."""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_OFFLINE"] = "1"  # a trainer would report itself


@pytest.fixture(scope="module")
def rows() -> list[EncodedComparison]:
    generator = torch.Generator().manual_seed(0)

    def ids(size: int) -> list[int]:
        return torch.randint(10, 900, (size,), generator=generator).tolist()

    made = []
    for prompt, sizes in ((9, (5, 12)), (4, (11, 3)), (14, (7, 7)), (6, (2, 9))):
        responses = tuple(EncodedResponse(one, one, rank) for rank, one in enumerate(map(ids, sizes)))
        made.append(EncodedComparison(ids(prompt), responses))
    return made


def references(rows: list[EncodedComparison]) -> list[np.ndarray]:
    """Near the model's own, so that no loss saturates."""
    sizes = [[len(one.input_ids) for one in row.responses] for row in rows]
    return [np.array([-7.4 * size + 1.5 * (at - 0.5) for at, size in enumerate(one)], np.float32) for one in sizes]


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "fp16": False,
        "gradient_checkpointing": False, "disable_tqdm": True, **options,
    }  # fmt: skip


TEXTS = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trl = pytest.importorskip("trl")
    folder = tiny_folder()
    args = trl.DPOConfig(
        **settings(tmp_path_factory.mktemp("dpo"), precompute_ref_log_probs=True, beta=OPTIONS.beta),
        label_smoothing=OPTIONS.label_smoothing,
        discopop_tau=OPTIONS.tau,
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return trl.DPOTrainer(model=model, args=args, train_dataset=Dataset.from_dict(TEXTS), processing_class=tokenizer)


def ours_of_pairs(rows: list[EncodedComparison]) -> dict[str, Any]:
    known = references(rows)
    items = [
        {COMPARISONS: [stored_comparison(row) | {REFERENCE: reference}]}
        for row, reference in zip(rows, known, strict=True)
    ]
    return ComparisonCollator(PaddingCollator(0))(items)


@pytest.mark.parametrize("key", PAIRS)
def test_losses_over_pairs_equal_those_of_trl(key, paired, rows):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    known = references(rows)
    examples = [
        {
            "prompt_ids": row.prompt,
            "chosen_ids": row.responses[0].input_ids,
            "rejected_ids": row.responses[1].input_ids,
            "ref_chosen_logps": float(reference[0]),
            "ref_rejected_logps": float(reference[1]),
        }
        for row, reference in zip(rows, known, strict=True)
    ]
    paired.loss_types, paired.loss_weights = [key], [1.0]
    smoothing = 0.0 if key == "sigmoid" else OPTIONS.label_smoothing  # trl's sigmoid has none
    options = Options(beta=OPTIONS.beta, label_smoothing=smoothing, tau=OPTIONS.tau)
    with torch.no_grad():
        theirs = paired.compute_loss(paired.model, DataCollatorForPreference(pad_token_id=0)(examples))
        model = AutoModelForCausalLM.from_pretrained(tiny_folder())
        install_supervised_loss(model)
        ours = PreferenceLoss([WeightedLoss(key, options)]).share(model, ours_of_pairs(rows), None).loss
    print(f"{key}: {float(ours):.7f}, trl {float(theirs):.7f}, difference {abs(float(ours) - float(theirs)):.1e}")
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)


def test_each_loss_over_pairs_is_compared_or_excused():
    assert {key for key, info in LOSS_MAPPING.items() if info.over == "pairs"} == {*PAIRS, *ELSEWHERE}


@pytest.mark.parametrize("key", ["kto", "apo_zero_unpaired"])
def test_losses_over_labels_equal_those_of_trl(key, rows, tmp_path):
    trl = pytest.importorskip("trl")
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    folder = tiny_folder()
    texts = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}
    args = trl.KTOConfig(
        **settings(tmp_path, precompute_ref_log_probs=True, beta=OPTIONS.beta, per_device_train_batch_size=4),
        loss_type=key,
        desirable_weight=OPTIONS.desirable_weight,
        undesirable_weight=OPTIONS.undesirable_weight,
    )
    trainer = trl.KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=args,
        train_dataset=Dataset.from_dict(texts),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    labels = [True, False, False, True]
    others = [1, 2, 3, 0]
    singles = [
        stored_comparison(EncodedComparison(row.prompt, (replace(row.responses[0], label=label),)))
        for row, label in zip(rows, labels, strict=True)
    ]
    known = [np.array([-7.4 * (len(one["input_ids"]) - one["parts"][0]), 0], np.float32) for one in singles]
    for at, one in enumerate(known):  # mismatched responses have become more probable: a KL above 0
        one[1] = -7.9 * singles[others[at]]["parts"][1]
    examples = [
        {
            "prompt_ids": row.prompt,
            "completion_ids": row.responses[0].input_ids,
            "KL_completion_ids": rows[other].responses[0].input_ids,
            "label": label,
            "ref_logps": float(reference[0]),
            "ref_KL_logps": float(reference[1]),
        }
        for row, other, label, reference in zip(rows, others, labels, known, strict=True)
    ]
    items = [
        {COMPARISONS: [with_partner(one, singles[other]) | {REFERENCE: reference}]}
        for one, other, reference in zip(singles, others, known, strict=True)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    install_supervised_loss(model)
    objective = LabelledLoss([WeightedLoss(key, OPTIONS)])
    batch = LabelledCollator(ComparisonCollator(PaddingCollator(0)))(items)
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model, DataCollatorForUnpairedPreference(pad_token_id=0)(examples))
        objective.settle(objective.measure(model, batch))
        ours = objective.share(model, batch, None).loss
    assert float(objective.kl) > 0.1
    print(f"{key}: {float(ours):.7f}, trl {float(theirs):.7f}, difference {abs(float(ours) - float(theirs)):.1e}")
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("centring", [0.0, 0.01])
@pytest.mark.parametrize("margins", [None, (1.0, 0.5, 2.0, 0.25)])
def test_the_loss_of_a_reward_model_equals_that_of_trl(centring, margins, rows, tmp_path):
    trl = pytest.importorskip("trl")
    folder = tiny_folder()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(**settings(tmp_path, center_rewards_coefficient=centring or None)),
        train_dataset=Dataset.from_dict(TEXTS),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    given = [EncodedComparison(row.prompt, row.responses, None) for row in rows]
    for row, margin in zip(given, margins or (None,) * len(given), strict=True):
        row.margin = margin
    batch = ComparisonCollator(PaddingCollator(model.config.pad_token_id))(
        [{COMPARISONS: [stored_comparison(row)]} for row in given]
    )
    order = torch.tensor([*range(0, 8, 2), *range(1, 8, 2)])
    theirs_batch = {name: batch[name][order] for name in ("input_ids", "attention_mask")}
    if margins is not None:
        theirs_batch["margin"] = torch.tensor(margins)
    model.eval()
    with torch.no_grad():
        theirs = trainer.compute_loss(model, theirs_batch)
        install_scores(model)
        ours = RewardLoss([WeightedLoss("bradley_terry", Options(centring=centring))]).share(model, batch, None).loss
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)
