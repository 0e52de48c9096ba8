"""METRIC_MAPPING: how generations are scored against the references of the data.

ROUGE over words and BLEU over characters, in percent, and tables of scores.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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


ROUGE = ("rouge-1", "rouge-2", "rouge-l")
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
    made: list[dict[str, float]] = []
    for prediction, reference in zip(predictions, references, strict=True):
        same = prediction.strip() == reference.strip()
        written, wanted = _characters(prediction), _characters(reference)
        scores = _rouge(words(prediction), words(reference), same=same)
        scores["bleu-4"] = _bleu(written, wanted) if written and wanted else float(same)
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


def _rouge(written: Sequence[str], wanted: Sequence[str], *, same: bool) -> dict[str, float]:
    """Return the F measures, from 0 to 1 (Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004)."""
    if same and min(len(written), len(wanted)) < 2:  # no words (an emoji, for instance) or no word bigrams
        return dict.fromkeys(ROUGE, 1.0)
    grams = [(_grams(written, size), _grams(wanted, size)) for size in (1, 2)]
    found = [_f_measure((ours & theirs).total(), ours.total(), theirs.total()) for ours, theirs in grams]
    longest = _f_measure(_common_length(written, wanted), len(written), len(wanted))
    return dict(zip(ROUGE, [*found, longest], strict=True))


def _bleu(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Return BLEU of one text (Papineni et al., 2002), over the n-grams that both have, up to four.

    Orders without a match count as half a match, a quarter for the next one, and so on: the third smoothing of Chen
    and Cherry, 2014.
    """
    matched, total, halvings = [], [], 0
    for size in range(1, min(BLEU_ORDER, len(written), len(wanted)) + 1):
        ours = _grams(written, size)
        matched.append(float((ours & _grams(wanted, size)).total()))
        total.append(ours.total())
        if not matched[0]:
            return 0.0
        if not matched[-1]:
            halvings += 1
            matched[-1] = 0.5**halvings
    precision = math.fsum(math.log(found / count) for found, count in zip(matched, total, strict=True)) / len(total)
    return math.exp(precision + min(1 - len(wanted) / len(written), 0))


def _grams(parts: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(parts[start:] for start in range(size)), strict=False))


def _f_measure(common: int, written: int, wanted: int) -> float:
    return 2 * common / (written + wanted) if written and wanted else 0.0


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time as the bits of a number.

    Source: Hyyro, Bit-Parallel LCS-length Computation Revisited, 2004.
    """
    places: dict[str, int] = {}
    for place, part in enumerate(one):
        places[part] = places.get(part, 0) | 1 << place
    everywhere = (1 << len(one)) - 1
    row = everywhere
    for part in other:
        met = row & places.get(part, 0)
        row = (row + met) | (row - met)
    return len(one) - (row & everywhere).bit_count()


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
