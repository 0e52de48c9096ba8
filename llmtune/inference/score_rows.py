"""Scores of the responses of a dataset: a result file, readable lines, and how often the better response wins."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from llmtune.arguments.infer import InferArguments
from llmtune.data.canonical import comparison_of
from llmtune.errors import DataError
from llmtune.inference.inputs import chosen_records, merged_first, result_file_of
from llmtune.inference.load import load_scorer
from llmtune.inference.score import Scorer
from llmtune.templates.chat import ChatTemplate
from llmtune.templates.comparisons import EncodedComparison
from llmtune.types import Answer, Comparison
from llmtune.utils.files import write_json
from llmtune.utils.logging import get_logger

ROWS_AT_ONCE = 256
"""Rows that are encoded and sorted by length together; the result file grows by as many."""
SHOWN_CHARACTERS = 100

ScoreResult: TypeAlias = dict[str, Any]
"""`query`, `history` (pairs) and `system` of a prompt, and `responses`: each with `response`, its text, and `score`,
`rank` (0: the best) where the row has several, `label` where the row has labels. `margin` where the data has one."""


def score_rows(args: InferArguments) -> list[ScoreResult]:
    """Score the responses of a dataset with a reward model.

    Returns:
        One dict per row, in the order of the rows.

    Raises:
        LlmtuneError: Any user error: see `llmtune.errors`.
    """
    args.check_scoring()
    args.tell("the scores of a reward model")
    rows = rows_to_score(args)
    file = result_file_of(args)
    if args.merge_lora_and_save:
        args = merged_first(args)
    scorer = load_scorer(args)
    log, started, results = get_logger(), time.perf_counter(), []
    with file.open("w", encoding="utf-8") as out:
        for index, _, scores in scored(scorer, rows, args, args.infer_batch_size or 16):
            result = score_result(rows[index], scores, scorer.template)
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()
            sys.stdout.write(_lines(result))
            results.append(result)
    count = sum(len(result["responses"]) for result in results)
    log.info("%d responses scored in %.1f s: %s", count, time.perf_counter() - started, file)
    found = _summary(results)
    if found:
        write_json(file.with_name(file.name.replace("infer_result", "infer_metrics")).with_suffix(".json"), found)
        log.info("%s", "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items()))
    return results


def rows_to_score(args: InferArguments) -> list[Comparison]:
    """Return the rows whose responses are scored: all of a file, else the pairs that training split off.

    The latter are read as pairs, as in training: the split depends on which rows there are.
    """
    kind = "responses" if args.val_dataset or args.dataset_test_ratio == 1 else "pairs"
    return list(map(comparison_of, chosen_records(args, "--show_dataset_sample", kind)))  # type: ignore[arg-type]


def scored(
    scorer: Scorer, rows: Sequence[Comparison], args: InferArguments, batch_size: int
) -> Iterator[tuple[int, EncodedComparison, list[float]]]:
    """Yield the index of each row, its ids, and the scores of its responses; rows that cannot be encoded are counted.

    Raises:
        DataError: None can be encoded, or one cannot and `--strict` is true.
    """
    problems: list[str] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        encoded = scorer.encode(part)
        for number, one in enumerate(encoded, start + 1):
            if not one.responses:
                problems.append(f"row {number}: {one.problem or f'longer than {args.max_length:,} tokens'}")
        if problems and args.strict:
            raise DataError(f"{problems[0]}. Fix the row, or leave out such rows with --strict false.")
        found = scorer.scores_of(encoded, batch_size)
        for index, (one, scores) in enumerate(zip(encoded, found, strict=True), start):
            if one.responses:
                yield index, one, scores
    if problems:
        text = f"{len(problems):,} of {len(rows):,} rows have no score; first: {problems[0]}"
        if len(problems) == len(rows):
            raise DataError(f"{text}.")
        get_logger().warning("%s (--strict true makes this fatal).", text)


def score_result(row: Comparison, scores: Sequence[float], template: ChatTemplate) -> ScoreResult:
    """Return the record of a row."""
    turns = row.prompt.turns
    pairs = zip(turns[:-1:2], turns[1:-1:2], strict=False)
    result: ScoreResult = {
        "query": turns[-1].content if turns else "",
        "history": [[question.content, earlier.content] for question, earlier in pairs],
        "system": template.system_of(row.prompt),
        "responses": [],
    }
    for answer, score in zip(row.answers, scores, strict=True):
        one: dict[str, Any] = {"response": text_of(answer), "score": score}
        if len(row.answers) > 1:
            one["rank"] = answer.rank
        if answer.label is not None:
            one["label"] = answer.label
        result["responses"].append(one)
    return result if row.margin is None else result | {"margin": row.margin}


def text_of(answer: Answer) -> str:
    """Return the text of a response: its last turn, with calls as JSON where it has no text."""
    last = answer.messages[-1]
    calls = [{"name": call.name, "arguments": call.arguments} for call in last.tool_calls]
    return last.content or (json.dumps(calls, ensure_ascii=False) if calls else "")


def _lines(result: ScoreResult) -> str:
    """Return the readable lines of a row: its question, and each response behind its score."""
    lines = [f"[PROMPT] {_short(result['query'])}"]
    for one in result["responses"]:
        marks = [f"rank {one['rank']}"] if "rank" in one else []
        marks += ["good" if one["label"] else "bad"] if "label" in one else []
        lines.append("  ".join([f"{one['score']:9.4f}", *marks, _short(one["response"])]))
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."


def _summary(results: Sequence[ScoreResult]) -> dict[str, float]:
    """Return accuracy and mean margin of the pairs, and the mean scores of good and bad responses."""
    margins = [
        better["score"] - worse["score"]
        for result in results
        for better in result["responses"]
        for worse in result["responses"]
        if better.get("rank", 0) < worse.get("rank", 0)
    ]
    found: dict[str, float] = {}
    if margins:
        right = sum(margin > 0 for margin in margins)
        found |= {"pairs": len(margins), "accuracy": right / len(margins), "mean_margin": _mean(margins)}
    for name, label in (("good", True), ("bad", False)):
        scores = [one["score"] for result in results for one in result["responses"] if one.get("label") is label]
        if scores:
            found[f"mean_score_{name}"] = _mean(scores)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
