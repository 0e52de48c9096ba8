"""Reward models measured on pairs: as their own training measured them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmtune import EvaluateArguments, RmArguments, SftArguments, evaluate, rm, sft
from llmtune.cli.dry_run import show_eval
from llmtune.errors import DataError, UsageError
from llmtune.evaluation.rewards import pair_metrics

SAME = {
    "loss": "eval_loss",
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_rewards/margins",
    "accuracy_chosen_longer": "eval_rewards/accuracies_chosen_longer",
    "accuracy_chosen_not_longer": "eval_rewards/accuracies_chosen_not_longer",
}
ROUNDED = 2e-5
"""Of numbers around 1 that are logged and written with six digits."""
QUICK: dict[str, Any] = {
    "model_type": "llmtune-tiny", "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 4,
    "report_to": ["none"],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    """A run with checkpoints 2 and 4, on pairs some of which have margins."""
    folder = tmp_path_factory.mktemp("rewards")
    rows = [
        {"prompt": f"{n} plus 1?", "chosen": f"It is {n + 1}." + " Sure." * (n % 2), "rejected": "No, thank you.",
         **({"margin": 0.5} if n % 3 else {})} for n in range(24)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = rm(
        RmArguments(
            **QUICK, dataset=[str(folder / "pairs.jsonl")], dataset_test_ratio=0.4, save_steps=2, eval_steps=2,
            save_total_limit=3, learning_rate=2e-3, output_dir=str(folder),
        )
    )  # fmt: skip
    return made.output_dir


@pytest.mark.medium
def test_the_rows_that_training_held_out_give_the_numbers_of_training(run, tmp_path, capsys):
    args = EvaluateArguments(ckpt_dir=[str(run)], all_checkpoints=True, output_dir=str(tmp_path), eval_batch_size=3)
    found = evaluate(args)
    logged = {
        one["global_step"]: one for one in map(json.loads, (run / "logging.jsonl").read_text().splitlines())
        if "eval_loss" in one
    }  # fmt: skip
    for step in (2, 4):
        for name, theirs in SAME.items():
            assert found[f"checkpoint-{step}"][name] == pytest.approx(logged[step][theirs], abs=ROUNDED), (step, name)
    assert json.loads((tmp_path / "summary.json").read_text()) == found
    assert "accuracy_chosen_longer" in (tmp_path / "summary.md").read_text()
    assert "checkpoint-4" in capsys.readouterr().out


@pytest.mark.medium
def test_a_file_of_pairs_is_measured_whole_and_an_evaluation_resumes(run, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q{n}", "chosen": "yes, gladly", "rejected": "no"} for n in range(7)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {
        "ckpt_dir": [str(run / "checkpoint-4")], "val_dataset": [str(file)], "output_dir": str(tmp_path / "eval")
    }  # fmt: skip
    whole = evaluate(EvaluateArguments(**options))
    journal = tmp_path / "eval/checkpoint-4/scores.jsonl"
    lines = journal.read_text().splitlines()
    assert [json.loads(line)["query"] for line in lines] == [f"q{n}" for n in range(7)]
    assert "accuracy_chosen_not_longer" not in whole["checkpoint-4"]
    changed = json.loads(lines[0])
    for one, score in zip(changed["responses"], (-50.0, 50.0), strict=True):
        one["score"] = score
    journal.write_text("\n".join([json.dumps(changed), *lines[1:3], lines[3][:20]]) + "\n")
    again = evaluate(EvaluateArguments(**options))
    assert len(journal.read_text().splitlines()) == 7
    assert again["checkpoint-4"]["loss"] > whole["checkpoint-4"]["loss"] + 10  # what was scored is not scored again


@pytest.mark.medium
def test_what_is_no_pair_or_no_metric_of_pairs_is_refused(run, tmp_path, capsys):
    checkpoint = str(run / "checkpoint-4")
    for options, text in (
        ({"metrics": ["rouge"]}, "remove --metrics rouge"),
        ({"suite": ["hellaswag"]}, "remove --suite hellaswag"),
        ({"with_base": True}, "the base model has no score"),
    ):
        with pytest.raises(UsageError, match=text):
            EvaluateArguments(ckpt_dir=[checkpoint], **options)
    made = sft(SftArguments(**QUICK, dataset=["tiny-qa#8"], output_dir=str(tmp_path / "sft"), eval_strategy="no"))
    with pytest.raises(UsageError, match="cannot share a table"):
        EvaluateArguments(ckpt_dir=[checkpoint, str(made.last_checkpoint)])
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps({"query": "q", "response": "a", "label": True}))
    with pytest.raises(DataError, match="has none to compare it with"):
        evaluate(EvaluateArguments(ckpt_dir=[checkpoint], val_dataset=[str(file)], output_dir=str(tmp_path / "none")))
    capsys.readouterr()
    args = EvaluateArguments(ckpt_dir=[checkpoint], temperature=0.2)
    assert args.unused == ["--temperature"]
    show_eval(args)
    assert "loss accuracy margin" in capsys.readouterr().out


def test_means_are_over_pairs_of_different_ranks():
    def one(score: float, rank: int, tokens: int) -> dict[str, Any]:
        return {"score": score, "rank": rank, "tokens": tokens}

    records = [
        {"responses": [one(1.0, 0, 5), one(0.0, 1, 2), one(3.0, 1, 9)], "margin": 2.0},
        {"responses": [one(0.5, 0, 4), one(0.0, 1, 4)]},
    ]
    found = pair_metrics(records)
    softplus = [math.log1p(math.exp(-value)) for value in (1 - 0 - 2, 1 - 3 - 2, 0.5)]
    assert found == pytest.approx(
        {
            "loss": sum(softplus) / 3, "accuracy": 2 / 3, "margin": (1 - 2 + 0.5) / 3, "accuracy_chosen_longer": 1.0,
            "accuracy_chosen_not_longer": 0.5,
        }
    )  # fmt: skip
    without = [math.log1p(math.exp(-value)) for value in (1, -2, 0.5)]
    assert pair_metrics(records, use_margin=False)["loss"] == pytest.approx(sum(without) / 3)
