"""Generations of a model in training: for evaluation metrics, and a few for the report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from llmtune.arguments.stage import StageArguments
from llmtune.data.canonical import conversation_of
from llmtune.errors import DataError, TemplateError
from llmtune.inference.engine import Engine
from llmtune.inference.sampling import Sampling
from llmtune.metrics import text_metrics
from llmtune.models.layers import without_compiling
from llmtune.samples.prepare import Prepared
from llmtune.types import Conversation

NUM_SAMPLES = 3
SAMPLE_TOKENS = 48


def generation_metrics(samples: Prepared, args: StageArguments) -> Callable[[Any], dict[str, float]] | None:
    """Return the metrics function of `--predict_with_generate` (model -> metrics); None without it."""
    if not args.predict_with_generate or samples.validation is None:
        return None
    return lambda model: _answer_metrics(model, samples, args)


def _answer_metrics(model: Any, prepared: Prepared, args: StageArguments) -> dict[str, float]:
    """Return ROUGE and BLEU of generations for the validation rows."""
    assert prepared.validation is not None
    rows = _askable(prepared, [conversation_of(record) for record in prepared.validation])
    if not rows:
        return {}
    engine = Engine(model, prepared.template)
    size = args.eval_batch_size if "eval_batch_size" in args.given else None
    with without_compiling(model):
        answers = list(engine.answer(rows, Sampling.of(args), batch_size=size))
    return text_metrics(answers, [_reference(row) for row in rows])


def sample_answers(model: Any, prepared: Prepared, known: Sequence[dict[str, Any]] = ()) -> list[tuple[str, str, str]]:
    """Return (prompt, reference, greedy generation) of the first rows, truncated.

    Args:
        known: Records of these rows from the last evaluation, if no step followed it: they need not be generated again.
    """
    if known:
        return [(one["prompt"], one["reference"], one["response"]) for one in known[:NUM_SAMPLES]]
    source = prepared.validation if prepared.validation is not None else prepared.train
    rows = [conversation_of(source[index]) for index in range(min(NUM_SAMPLES, len(source)))]
    rows = _askable(prepared, [row for row in rows if row.turns[0].role == "user"])
    sampling = Sampling(max_new_tokens=SAMPLE_TOKENS)
    answers = Engine(model, prepared.template).answer(rows, sampling, batch_size=NUM_SAMPLES)
    with without_compiling(model):
        return [(_question(row), _reference(row), answer) for row, answer in zip(rows, answers, strict=True)]


def _askable(prepared: Prepared, rows: list[Conversation]) -> list[Conversation]:
    """Return the rows that can be rendered; bad ones were reported at encoding and must not end a run now."""
    kept: list[Conversation] = []
    for row in rows:
        with contextlib.suppress(TemplateError, DataError):
            prepared.template.prompts([row])
            kept.append(row)
    return kept


def _question(row: Conversation) -> str:
    asked = [turn.content for turn in row.turns if turn.role != "assistant"]
    return asked[-1] if asked else ""


def _reference(row: Conversation) -> str:
    return row.turns[-1].content if row.turns[-1].role == "assistant" else ""
