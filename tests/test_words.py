"""Help, messages, docstrings and docs use the field's words: the table of STYLE.md section 9, as patterns."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtune.arguments.parser import build_parser
from llmtune.cli.main import COMMANDS, find_command

ROOT = Path(__file__).parents[1]

DATA = ("llmtune/data/families/embedded.py", "llmtune/models/tiny.py")
"""Sentences that a model is trained on: they are data."""

WORDS: dict[str, tuple[str, str]] = {
    # name: (pattern, what to write instead)
    "learned": (
        r"\blearned\b(?! (?:position|from|embedding))|\blearnt\b|nothing to learn|\bto be learned|\blearns from",
        "trainable tokens; contribute to the loss",
    ),
    "trained are": (r"\bTrained are\b", "Trainable parameters: N of M"),
    "taken for": (r"\b(?:is|are|was|be|and) taken for\b", "is read as; --old -> --new"),
    "goes on": (r"\b(?:goes?|going|gone|went) on (?:from|with|at|after|by)\b|\btaken up again\b", "resumes; continues"),
    "talk": (r"\btalk(?:s|ed|ing)? to\b|\ba talk\b", "chat with; a conversation"),
    "no number": (r"\b(?:is|are|was|were|be) no number\b(?! of)|without a sound loss", "is NaN or infinite"),
    "run away": (r"\brun away\b|\bruns away\b|\bran away\b", "diverged"),
    "number format": (r"\bnumber formats?\b", "dtype"),
    "behind one another": (r"\bbehind (?:one another|each other)\b", "packed sequences; concatenated"),
    "stretched": (r"\bstretch(?:ed|es|ing)?\b|\bturned positions\b", "RoPE scaling"),
    "card": (r"(?<!model )(?<!model_)(?<!dataset )\b(?:graphics |video )?cards?\b(?!\.md)", "GPU"),
    "eyes": (r"\beyes?\b|\blooks? at (?:images|pictures)\b|\bcarr(?:y|ies) what it sees\b", "vision tower; projector"),
    "told": (r"\btold\b|\btells? of\b", "logged; reported; receives"),
    "leave away": (r"\b(?:leave|leaves|left|leaving)\b[^.:;\"]{0,60}?\baway\b", "remove; omit"),
    "mend": (r"\bmend(?:s|ed|ing)?\b", "fix"),
    "a step": (
        r"(?:\d|\}|\b(?:tokens|samples|rows|packs|steps|seconds|ms|s|calls?|images|requests|GPUs?|times|GiB|MB|sequences|once|"
        r"processe?s?)) an? (?:step|sample|epoch|pack|second|row|process|GPU|day|month|hour|minute|machine|token|batch|"
        r"sequence|answer|request)\b",
        "per step, per sample, per epoch",
    ),
    "data set": (r"\bdata sets?\b", "dataset"),
    "system text": (r"\b[Ss]ystem texts?\b", "system prompt"),
    "hollow": (r"\bhollow\b", "on the meta device"),
    "faces": (r"\bfaces?\b", "adapters"),
    "sees": (
        r"\b(?:models?|that|which|who|to) sees? (?:images|pictures)\b|\bdo not see each other\b",
        "vision model; do not attend to each other",
    ),
}
CASE = ("faces", "system text")
"""Patterns that mind upper case: Hugging Face and `--system TEXT` are right."""
PATTERNS = {name: re.compile(pattern, 0 if name in CASE else re.I) for name, (pattern, _) in WORDS.items()}
RIDDLE = re.compile(r"What\b(?! (?:is|are|does|do)\b[^.]*\?)")


def words_in(text: str) -> list[str]:
    """The replaced words that a text still uses, each as `name: the place`."""
    flat = " ".join(text.split())
    hits = ((name, pattern.search(flat)) for name, pattern in PATTERNS.items())
    return [f"{name}: {hit[0]!r} -> {WORDS[name][1]}" for name, hit in hits if hit]


def strings(file: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of each text of a module that a person reads."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, text, False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            document = id(node) in documents
            if document or " " in node.value.strip():
                yield node.lineno, node.value, document


def faults(path: str) -> Iterator[str]:
    """Replaced words of one file, a line each."""
    file = ROOT / path
    if path.endswith(".py"):
        for line, text, document in strings(file):
            yield from (f"{path}:{line}: {word}" for word in words_in(text))
            if document and RIDDLE.match(text.strip()):
                yield f"{path}:{line}: a docstring says what the thing is or returns: {text.strip()[:60]!r}"
    else:
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield from (f"{path}:{line}: {word}" for word in words_in(text))


def files() -> list[str]:
    places = (file for glob in ("llmtune/**/*.py", "docs/**/*.md", "README*.md") for file in ROOT.glob(glob))
    return sorted(path for file in places if (path := file.relative_to(ROOT).as_posix()) not in DATA)


@pytest.mark.parametrize("path", files())
def test_texts_use_the_fields_words(path: str) -> None:
    assert not list(faults(path))


HELPS = [name for name in COMMANDS if hasattr(find_command(name), "ARGUMENTS")]


@pytest.mark.parametrize("command", HELPS)
def test_help_uses_the_fields_words(command: str) -> None:
    cls = find_command(command).ARGUMENTS
    assert not words_in(build_parser(cls, command=command, summary=COMMANDS[command]).format_help())


REPLACED = {
    "learned": "2,164 tokens (477 learned)",
    "trained are": "Trained are 28,672 of 1,997,760 parameters.",
    "taken for": "--lr is taken for --learning_rate.",
    "goes on": "The run goes on from checkpoint-4.",
    "talk": "Answer a dataset, or talk to it.",
    "no number": "The loss of step 3 is no number.",
    "run away": "The loss has run away.",
    "number format": "Number format of the weights.",
    "behind one another": "rows behind one another",
    "stretched": "Rotary positions are stretched 2 times.",
    "card": "It needs two cards of 80 GB.",
    "eyes": "The part that looks at images.",
    "told": "The trainer is told of every batch.",
    "leave away": "Leave --packing and --padding_free away.",
    "mend": "Mend them.",
    "a step": "16 samples a step",
    "data set": "Data sets: keys or files.",
    "system text": "System text for rows without one.",
    "hollow": "a hollow model",
    "faces": "The faces that one model has.",
    "sees": "A model that sees images.",
}
"""A sentence that stood in this project for each replaced word."""


@pytest.mark.parametrize("name", WORDS)
def test_each_replaced_word_is_found(name: str) -> None:
    assert [word.partition(":")[0] for word in words_in(REPLACED[name])] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "Write a model card from https://huggingface.co/org/model; see MODEL_CARD.md.",
        "Tokens that contribute to the loss; learned positional embeddings.",
        "A number of rows is not a number of tokens.",
        "One line per step, per sample and per epoch; take a step back.",
        "The interface faced recommends amendments.",
    ],
)
def test_the_fields_own_words_pass(text: str) -> None:
    assert not words_in(text)


def test_riddles_and_split_messages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '"""What the model is told."""\nA = 1\n"""What A is."""\nB = f"Leave --a {A} " "away."\nC = "learned"\n'
    (tmp_path / "llmtune").mkdir()
    (tmp_path / "llmtune" / "riddle.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert files() == ["llmtune/riddle.py"]
    lines = [
        fault.split(": ")[0].rpartition(":")[2] + " " + fault.split(": ")[1] for fault in faults("llmtune/riddle.py")
    ]
    riddle = "a docstring says what the thing is or returns"
    assert lines == ["1 told", f"1 {riddle}", f"3 {riddle}", "4 leave away"]
