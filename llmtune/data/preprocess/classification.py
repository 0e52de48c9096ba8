"""A label to be named, by its number in the data."""

from __future__ import annotations

from collections.abc import Sequence

from llmtune.data.preprocess.common import Drop, Row, text_of
from llmtune.errors import RowError

__all__ = ["cmnli", "jd_sentiment"]

SINGLE = "Task: {task}\nSentence: {sentence}\nCategory: {labels}\nOutput: "
PAIR = "Task: {task}\nSentence1: {sentence1}\nSentence2: {sentence2}\nCategory: {labels}\nOutput: "

NLI_LABELS = ("neutral", "entailment", "contradiction")
SENTIMENT_LABELS = ("negative", "positive")


def cmnli(row: Row) -> Row | Drop:
    label = _label(row, NLI_LABELS)
    if isinstance(label, Drop):
        return label
    query = PAIR.format(
        task="Natural Language Inference",
        sentence1=text_of(row, "sentence1"),
        sentence2=text_of(row, "sentence2"),
        labels=", ".join(NLI_LABELS),
    )
    return {"query": query, "response": label}


def jd_sentiment(row: Row) -> Row | Drop:
    label = _label(row, SENTIMENT_LABELS)
    if isinstance(label, Drop):
        return label
    query = SINGLE.format(
        task="Sentiment Classification", sentence=text_of(row, "sentence"), labels=", ".join(SENTIMENT_LABELS)
    )
    return {"query": query, "response": label}


def _label(row: Row, labels: Sequence[str]) -> str | Drop:
    """The name of a label. A hidden one is null, or -1 in the test parts of benchmarks."""
    value = row.get("label")
    if value is None:
        return Drop("no label")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RowError(f"the label {value!r} is not a number") from None
    if number < 0:
        return Drop("no label")
    if number not in range(len(labels)):
        raise RowError(f"the label {value!r} is none of 0 to {len(labels) - 1}")
    return labels[int(number)]
