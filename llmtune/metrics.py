"""METRIC_MAPPING: how generations are scored against the references of the data.

ROUGE over words and BLEU over characters, in percent, and tables of scores. Libraries are imported on first use.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.registry import Entry, Registry

MetricFunction = Callable[..., dict[str, float]]
"""`function(predictions, references, rows)`: generated responses, those of the data, and the rows as `Conversation`,
all in one order. Returns scores by name, usually means over the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricInfo(Entry):
    """A metric.

    Attributes:
        function: Or `"module:attribute"`, imported on first use. None for metrics that llmtune computes itself.
        kind: Its inputs: generations for the rows, the loss on them, or choice questions.
        names: Names of the scores to keep of those that the function returns; empty keeps all.
        description: One line for `llmtune list metrics`.
    """

    function: str | MetricFunction | None = None
    kind: Literal["answers", "loss", "choice"] = "answers"
    names: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        if self.kind == "answers" and self.function is None:
            raise UsageError("A metric of generations needs a function(predictions, references, rows).")


METRIC_MAPPING: Registry[MetricInfo] = Registry(
    "metric",
    MetricInfo,
    function_field="function",
    entry_points="llmtune.metrics",
    list_command="llmtune list metrics",
)
register_metric = METRIC_MAPPING.register

TEXT = "llmtune.metrics:text_metrics"

register_metric("loss", MetricInfo(kind="loss", description="Loss, perplexity and token accuracy on trainable tokens."))
register_metric(
    "rouge",
    MetricInfo(function=TEXT, names=("rouge-1", "rouge-2", "rouge-l"), description="ROUGE-1, -2, -L over words."),
)
register_metric("bleu", MetricInfo(function=TEXT, names=("bleu-4",), description="BLEU-4 over characters."))
register_metric(
    "exact_match",
    MetricInfo(function=TEXT, names=("exact_match",), description="Share of responses equal to the reference."),
)
register_metric(
    "choice",
    MetricInfo(kind="choice", description="Accuracy on choice questions, by the likelihood of each choice."),
)


ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
BLEU_ORDER = 4

# Scripts whose words are not separated by blanks: each character counts as a word. Han and its
# extensions, kana, bopomofo, and the syllables of Korean, whose particles would make words of like sense differ.
_SINGLE = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3040, 0x318F),
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


def text_metrics(
    predictions: Sequence[str], references: Sequence[str], rows: Sequence[object] = ()
) -> dict[str, float]:
    """Return means over the samples of ROUGE-1, ROUGE-2, ROUGE-L (F measures), BLEU-4 and exact matches.

    An empty text against a non-empty one scores 0, two empty ones 100. Texts of fewer than four characters are
    compared by the n-grams that they have, so that a short response can reach 100.

    Args:
        predictions: Generated responses.
        references: Responses of the data, in the same order.

    Returns:
        `rouge-1`, `rouge-2`, `rouge-l`, `bleu-4`, `exact_match`, from 0 to 100; nothing where there are no samples.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # type: ignore[import-untyped]
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE.values()), tokenizer=_Words())
    smoothing = SmoothingFunction().method3
    made: list[dict[str, float]] = []
    for prediction, reference in zip(predictions, references, strict=True):
        same = prediction.strip() == reference.strip()
        scores = _rouge(scorer, prediction, reference, same=same)
        written, wanted = _characters(prediction), _characters(reference)
        order = min(BLEU_ORDER, len(written), len(wanted))
        if order:
            weights = (1 / order,) * order
            scores["bleu-4"] = float(sentence_bleu([wanted], written, weights=weights, smoothing_function=smoothing))
        else:
            scores["bleu-4"] = float(same)
        made.append({**scores, "exact_match": float(same)})
    names = (*ROUGE, "bleu-4", "exact_match") if made else ()
    return {name: round(100 * sum(row[name] for row in made) / len(made), 4) for name in names}


def words(text: str) -> list[str]:
    """Return lower-cased words and numbers of alphabetic scripts, and single characters of CJK scripts."""
    found: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFKC", text).lower():
        if any(first <= ord(character) <= last for first, last in _SINGLE):
            found.append(character)
            inside = False
        elif unicodedata.category(character)[0] in "LNM":  # marks too: Thai and Hindi vowels belong to their word
            if inside:
                found[-1] += character
            else:
                found.append(character)
            inside = True
        else:
            inside = False
    return found


class _Words:
    """Tokenizer for rouge-score, whose own keeps only a-z and 0-9, and scores Chinese 0."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _rouge(scorer: Any, prediction: str, reference: str, *, same: bool) -> dict[str, float]:
    num_words = min(len(words(prediction)), len(words(reference)))
    if same and num_words < 2:  # no words (an emoji, for instance) or no word bigrams, though the texts are equal
        return dict.fromkeys(ROUGE, 1.0)
    found = scorer.score(reference, prediction)
    return {name: float(found[theirs].fmeasure) for name, theirs in ROUGE.items()}


def _characters(text: str) -> list[str]:
    return [character for character in text if not character.isspace()]


def markdown_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table with one row per checkpoint and one column per score; missing scores are empty."""
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    rows = [["checkpoint", *names], ["---", *["---:"] * len(names)]]
    rows += [[key, *(_number(found.get(name)) for name in names)] for key, found in scores.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = [
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join([first, *rest]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) >= 1e5 else f"{value:.4f}"
