"""Scores of reward models on pairs: how often, and by how much, the better response scores higher."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import read_settings
from llmtune.data.canonical import comparison_of
from llmtune.errors import DataError
from llmtune.evaluation.results import Journal, Scores, claim_folder, digest, write_results
from llmtune.evaluation.scores import ROWS
from llmtune.inference.inputs import chosen_records
from llmtune.inference.load import load_scorer
from llmtune.inference.score import Scorer
from llmtune.inference.score_rows import score_result, scored
from llmtune.losses.terms import Options
from llmtune.losses.unpaired import bradley_terry
from llmtune.types import Comparison
from llmtune.utils.logging import get_logger


def evaluate_rewards(args: EvaluateArguments) -> Scores:
    """Evaluate reward models on the same pairs: by default, those that the first one's run held out.

    Writes, below `args.result_folder()`, `scores.jsonl` for each checkpoint, and the summaries of `evaluate`.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    if not (args.first.dataset or args.first.val_dataset):
        raise DataError("No pairs to evaluate on: give --val_dataset, or the checkpoint of a run with data.")
    rows = list(map(comparison_of, chosen_records(args.first, "--num_samples", "pairs")))
    folder = claim_folder(args, ["rewards"], digest(rows, []))
    found: Scores = {}
    for name, checkpoint in args.names().items():
        assert checkpoint is not None
        get_logger().info("Evaluating %s: %d rows of pairs.", name, len(rows))
        journal = Journal(folder / name / "scores.jsonl")
        of_one = args.arguments_of(checkpoint)
        records = _records(load_scorer(of_one), rows, of_one, journal, args.eval_batch_size or ROWS)
        use_margin = bool(read_settings(checkpoint).get("use_margin", True))
        found[name] = {key: round(value, 6) for key, value in pair_metrics(records, use_margin=use_margin).items()}
        gc.collect()  # the next one needs its memory
    write_results(folder, found, args)
    return found


def _records(
    scorer: Scorer, rows: Sequence[Comparison], args: InferArguments, journal: Journal, batch_size: int
) -> list[dict[str, Any]]:
    """Return the rows with scores and lengths in tokens of their responses; those of the journal as they are."""
    missing = [index for index in range(len(rows)) if index not in journal.records]
    for place, encoded, scores in scored(scorer, [rows[index] for index in missing], args, batch_size):
        index = missing[place]
        record = score_result(rows[index], scores, scorer.template)
        for one, response in zip(record["responses"], encoded.responses, strict=True):
            one["tokens"] = len(response.input_ids)
        journal.add([{"index": index, **record}])
    return journal.finish()


def pair_metrics(records: Sequence[Mapping[str, Any]], *, use_margin: bool = True) -> dict[str, float]:
    """Return means over the pairs of responses of different ranks.

    Args:
        records: Each with its `responses`: `score`, `rank` and `tokens`; and `margin`, where the data has one.
        use_margin: The loss asks for the margins of the data.

    Returns:
        `loss` (Bradley-Terry), `accuracy`, `margin` of the scores; `accuracy_chosen_longer` among the pairs whose
        better response has more tokens, and `accuracy_chosen_not_longer` among the others, where there are such pairs:
        a model that only measures length is right in the former alone. Accuracies are fractions.
    """
    pairs = [
        (better, worse, (record.get("margin") or 0.0) if use_margin else 0.0)
        for record in records
        for better in record["responses"]
        for worse in record["responses"]
        if better["rank"] < worse["rank"]
    ]
    scores = torch.tensor([[better["score"], worse["score"]] for better, worse, _ in pairs]).float()
    margins = torch.tensor([margin for *_, margin in pairs]).float()
    chosen, rejected = scores.unbind(1)
    right = (chosen > rejected).float()
    longer = torch.tensor([better["tokens"] > worse["tokens"] for better, worse, _ in pairs])
    found = {
        "loss": float(bradley_terry(chosen, rejected, margins, Options()).sequences.mean()),
        "accuracy": float(right.mean()),
        "margin": float((chosen - rejected).mean()),
    }
    for name, part in (("accuracy_chosen_longer", longer), ("accuracy_chosen_not_longer", ~longer)):
        if part.any():
            found[name] = float(right[part].mean())
    return found
