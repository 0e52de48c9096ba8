"""One question, one answer, under other names or with rows that do not belong."""

from __future__ import annotations

from llmtune.data.preprocess.alpaca import NO_OUTPUT
from llmtune.data.preprocess.common import Drop, Row, text_of
from llmtune.data.values import parse_literal

__all__ = ["FIREFLY_KINDS", "blossom_math", "firefly", "instruct", "lawyer_llama", "medical_en"]

FIREFLY_KINDS = frozenset({
    "AncientPoem", "BELLE", "ClassicalChinese", "Composition", "Cot", "Couplet", "Dictionary", "JinYongGeneration",
    "KeywordRecognition", "LyricGeneration", "MRC", "MusicComment", "NER", "NLI", "OpenQA", "ProductDesc", "Program",
    "ProseGeneration", "SentimentAnalyze", "StoryGeneration", "Summary", "TextCorrection", "TextMatching",
    "Translation",
})  # fmt: skip


def firefly(row: Row) -> Row | Drop:
    if text_of(row, "kind") not in FIREFLY_KINDS:
        return Drop("a kind that is not among the 24")
    return {"query": text_of(row, "input"), "response": text_of(row, "target")}


def instruct(row: Row) -> Row | Drop:
    if row.get("prompt") is None:
        return Drop("no prompt")
    return {"query": text_of(row, "prompt"), "response": text_of(row, "completion")}


def medical_en(row: Row) -> Row | Drop:
    """The instruction is the same sentence in every row; the question stands in the input."""
    if row.get("input") is None:
        return Drop("no input")
    if row.get("output") is None:
        return NO_OUTPUT
    return {"query": text_of(row, "input"), "response": text_of(row, "output")}


def lawyer_llama(row: Row) -> Row | Drop:
    """Answers that lean on a history are left out, as the history is not in the form of turns."""
    history = row.get("history")
    if isinstance(history, str):
        history = parse_literal(history, what="column 'history'") if history.strip() else None
    if history:
        return Drop("has a history")
    return {"query": text_of(row, "instruction"), "response": text_of(row, "output")}


def blossom_math(row: Row) -> Row:
    """The way to the answer, then the answer. The column of the question has had both names."""
    question = "input" if row.get("input") is not None else "query"
    return {
        "query": text_of(row, question),
        "response": f"{text_of(row, 'output')}\n\nAnswer: {text_of(row, 'answer')}",
    }
