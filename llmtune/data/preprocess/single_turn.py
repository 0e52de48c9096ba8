"""One question, one answer, under other names or with rows that do not belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmtune.data.contents import image_path
from llmtune.data.preprocess.common import Drop, Row, text_of
from llmtune.data.values import parse_literal, text_or_none
from llmtune.errors import RowError

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


# Instruction, input, output


NO_OUTPUT = Drop("no output")
LABEL = "输入："
"""Some inputs of the Chinese translation begin with their own label."""


def alpaca(row: Row) -> Row | Drop:
    """Leave out rows without an output; how instruction and input are joined is the alpaca shape's business."""
    if row.get("output") is None:
        return NO_OUTPUT
    return _three_columns(row, row.get("input"))


def alpaca_zh(row: Row) -> Row | Drop:
    if row.get("output") is None:
        return NO_OUTPUT
    more = text_or_none(row, "input")
    return _three_columns(row, more.removeprefix(LABEL) if more else more)


def _three_columns(row: Row, more: Any) -> Row:
    return {"instruction": row.get("instruction"), "input": more, "output": row["output"]}


# Programs


FENCE = "```python"


def leetcode(row: Row) -> Row | Drop:
    """The problem stands as a heading above the one block of code; the answer is the code and its explanation."""
    text = text_of(row, "code_with_problem")
    if text.count(FENCE) != 1:
        return Drop(f"not exactly one {FENCE} block")
    start = text.index(FENCE)
    problem, code = text[:start].removeprefix("# "), text[start:].strip()
    return {"query": problem, "response": f"{code}\n\n{text_of(row, 'explanation_only')}"}


# Texts to be written: advertisements, questions, poems, laws


ADVERTISE = "Task: Generating advertisements based on keywords.\nKeywords: {keywords}\nAdvertisements: "
QUESTION = "Task: Question Generation\nContext: {context}\nAnswer: {answer}\nQuestion: "
POEM = "写诗"
SEPARATOR = "[SEP]"


def advertise_gen(row: Row) -> Row:
    return {"query": ADVERTISE.format(keywords=text_of(row, "content")), "response": text_of(row, "summary")}


def dureader_question(row: Row) -> Row:
    parts = text_of(row, "text1").split(SEPARATOR)
    if len(parts) != 2:
        raise RowError(f"column 'text1' has {len(parts) - 1} times {SEPARATOR} where answer and context part at one")
    answer, context = parts
    return {"query": QUESTION.format(context=context, answer=answer), "response": text_of(row, "text2")}


def poetry(row: Row) -> Row:
    return {"query": POEM, "response": text_of(row, "text1")}


def tigerbot_law(row: Row) -> Row:
    """A text to learn whole: type and title on lines of their own, then the chapters that are there, and the law."""
    chapters = [text_or_none(row, f"chapter{number}") or "" for number in (1, 2, 3)]
    text = f"{text_of(row, 'type')}\n{text_of(row, 'title')}\n{''.join(chapters)}{text_of(row, 'content')}"
    return {"text": text}


# Images, named in the text by their paths and listed beside it


QUERY = "<img>{path}</img>please describe the image"
BETWEEN_CAPTIONS = "&&"


def coco_caption(row: Row) -> Row:
    """The first of the captions; the image is named by its path and not opened."""
    path = image_path(row.get("image"))
    caption, _, _ = text_of(row, "caption").partition(BETWEEN_CAPTIONS)
    return {"query": QUERY.format(path=path), "response": caption, "images": [path]}


# A label to be named, by its number in the data


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
