"""Scores of generated responses against the reference ones: ROUGE over words, BLEU over characters, in percent."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

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


def text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
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
    rows: list[dict[str, float]] = []
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
        rows.append({**scores, "exact_match": float(same)})
    names = (*ROUGE, "bleu-4", "exact_match") if rows else ()
    return {name: round(100 * sum(row[name] for row in rows) / len(rows), 4) for name in names}


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
