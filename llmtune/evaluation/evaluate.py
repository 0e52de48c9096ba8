"""evaluate(): checkpoints side by side, on the same rows."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.evaluate import EvaluateArguments
from llmtune.errors import DataError, LlmtuneError
from llmtune.evaluation.choices import ChoiceQuestion, read_choices, split_choices
from llmtune.evaluation.results import Journal, Scores, claim_folder, digest, write_results
from llmtune.evaluation.rewards import evaluate_rewards
from llmtune.evaluation.scores import ROWS, answer_rows, answer_scores, choice_scores, loss_scores
from llmtune.inference.engine import Engine
from llmtune.inference.infer import InferResult, readable_rows, scored_pair
from llmtune.inference.inputs import rows_to_answer
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.metrics import METRIC_MAPPING
from llmtune.types import Conversation
from llmtune.utils.logging import get_logger, quiet_libraries
from llmtune.utils.system import need

DEFAULT_METRICS = ("loss", "rouge", "bleu", "exact_match")


@dataclass(frozen=True)
class _Task:
    """Inputs of the evaluation, the same for every checkpoint."""

    rows: list[Conversation]
    questions: list[ChoiceQuestion]
    metrics: list[str]

    def wants(self, kind: str) -> bool:
        return any(METRIC_MAPPING[key].kind == kind for key in self.metrics)


def evaluate(args: EvaluateArguments) -> Scores:
    """Evaluate checkpoints on the validation part of a dataset, or on a file.

    Writes, below `args.result_folder()`, for each checkpoint `predictions.jsonl`, `losses.jsonl` and `choices.jsonl`;
    for all, `summary.json`, `summary.md` and, with `all_checkpoints`, plots of the curves.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    quiet_libraries()
    log = get_logger()
    args.tell("an evaluation")
    if args.scores:
        return evaluate_rewards(args)
    if args.suite:
        need("lm_eval", "--suite", extra="eval", name="lm-eval")
        from llmtune.evaluation.suite import run_suite

        return run_suite(args)
    task = _task(args)
    folder = claim_folder(args, task.metrics, digest(task.rows, task.questions))
    scores: Scores = {}
    for name, checkpoint in args.names().items():
        log.info("Evaluating %s: %d rows, %d choice questions.", name, len(task.rows), len(task.questions))
        found = args.arguments_of(checkpoint)
        scores[name] = _evaluate_one(load_engine(found), task, args, folder / name)
        gc.collect()  # the next one needs its memory
    write_results(folder, scores, args)
    return scores


def _task(args: EvaluateArguments) -> _Task:
    plain, with_choices = split_choices(args.first.val_dataset)
    questions = read_choices(with_choices, args.num_samples)
    rows: list[Conversation] = []
    if plain or not with_choices:
        if not (plain or args.first.dataset):
            raise DataError("No data to evaluate on: give --val_dataset, or the checkpoint of a run with data.")
        wanted = dataclasses.replace(args.first, val_dataset=plain, load_args_from_ckpt_dir=False)
        wanted.inherited = args.first.inherited  # whose rows they are
        rows = rows_to_answer(wanted, "--num_samples")
    metrics = list(args.metrics)
    if not metrics:
        metrics = [*(DEFAULT_METRICS if rows else ()), *(["choice"] if questions else [])]
    task = _Task(rows, questions, metrics)
    if task.wants("choice") and not questions:
        raise DataError(
            "The metric choice needs rows with choices: a file for --val_dataset whose rows have a question, choices "
            "and an answer."
        )
    unlabelled = sum(not _has_answer(row) for row in rows)
    if unlabelled and task.wants("answers"):
        get_logger().warning(
            "%d rows have no reference response: their generations are saved, but not scored.", unlabelled
        )
    return task


def _evaluate_one(engine: Engine, task: _Task, args: EvaluateArguments, folder: Path) -> dict[str, float]:
    rows = readable_rows(task.rows, engine, args.first)
    scores: dict[str, float] = {}
    if task.wants("loss"):
        scores |= loss_scores(engine, rows, Journal(folder / "losses.jsonl"), args.eval_batch_size or ROWS)
    if task.wants("answers") and rows:
        journal = Journal(folder / "predictions.jsonl")
        results = answer_rows(engine, rows, Sampling.of(args), journal, args.eval_batch_size, args.seed)
        scores |= _score(task.metrics, results, rows)
    if task.wants("choice"):
        journal = Journal(folder / "choices.jsonl")
        scores |= choice_scores(engine, task.questions, journal, args.eval_batch_size or ROWS, args.choice_style)
    if not scores:
        raise LlmtuneError(f"Nothing could be measured with {', '.join(task.metrics)}: the rows have no responses.")
    return {name: round(value, 6) for name, value in scores.items()}


def _score(metrics: Sequence[str], results: Sequence[InferResult], rows: Sequence[Conversation]) -> dict[str, float]:
    labelled = [number for number, result in enumerate(results) if result.get("label")]
    if not labelled:
        return {}
    answers, references = map(list, zip(*(scored_pair(results[number]) for number in labelled), strict=True))
    return answer_scores(metrics, answers, references, [rows[number] for number in labelled])


def _has_answer(row: Conversation) -> bool:
    last = row.turns[-1] if row.turns else None
    return last is not None and last.role == "assistant" and bool(last.content or last.tool_calls)
