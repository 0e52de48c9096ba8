"""A generation as thought and content: in pieces of any size, in results, and in a conversation's history."""

from __future__ import annotations

import copy

import pytest

from llmtune.inference.infer import result_of
from llmtune.inference.texts import StopWords, ThoughtText, TokenText, split_answer
from llmtune.templates.lookup import get_template
from llmtune.templates.thoughts import THINK, ThoughtMarks
from llmtune.types import Conversation, Message

CASES = [
    # text, opened, thought, content
    ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
    ("\n<think>Hm.</think>Yes.", False, "Hm.", "Yes."),
    ("Hm.\n\nMore.\n</think>\n\nYes.", True, "Hm.\n\nMore.", "Yes."),
    ("<think>\nHm.\n</think>\n\nYes.", True, "Hm.", "Yes."),
    ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
    ("</think>Yes.", True, "", "Yes."),
    ("Yes.", False, None, "Yes."),
    ("\n Yes, 1 < 2.\n", False, None, "\n Yes, 1 < 2.\n"),
    ("<thin", False, None, "<thin"),
    ("Cut in the thou", True, "Cut in the thou", ""),
    ("<think>Cut </th", False, "Cut </th", ""),
    ("Say <think> and </think>.", False, None, "Say <think> and </think>."),
    ("<think>a</think>b </think> c", False, "a", "b </think> c"),
    ("", True, "", ""),
    ("", False, None, ""),
]


@pytest.mark.parametrize(("text", "opened", "thought", "content"), CASES)
def test_the_split_does_not_depend_on_the_pieces(text, opened, thought, content):
    assert split_answer(text, THINK, opened=opened) == (thought, content)
    for size in (1, 2, 3, 7):
        parts = ThoughtText(THINK, opened=opened)
        told = [parts.add(text[start : start + size]) for start in range(0, len(text), size)] + [parts.finish()]
        assert "".join(one for one, _ in told) == (thought or "")
        assert "".join(one for _, one in told) == content
        assert parts.has_thought == (thought is not None) or not text


def test_a_family_without_thoughts():
    assert split_answer("<think>a</think>b", None, opened=False) == (None, "<think>a</think>b")


def test_marks_that_are_special_tokens_are_decoded(tiny_tokenizer_copy):
    """Magistral's marks and Command's would vanish with the control tokens."""
    tokenizer = tiny_tokenizer_copy
    tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ '[THINK]' ~ m['reasoning_content'] ~ '[/THINK]' "
        "if m['reasoning_content'] }}{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = get_template("auto", tokenizer)
    assert template.thought_marks == ThoughtMarks("[THINK]", "[/THINK]")
    ids = tokenizer("[THINK]Hm.[/THINK]Yes.<|im_end|>", add_special_tokens=False)["input_ids"]
    text = TokenText(tokenizer, template.thought_tokens)
    written = "".join(map(text.add, ids)) + text.rest()
    assert split_answer(written, template.thought_marks, opened=False) == ("Hm.", "Yes.")


@pytest.fixture
def tiny_tokenizer_copy():
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    return copy.deepcopy(AutoTokenizer.from_pretrained(str(tiny_folder())))


@pytest.mark.parametrize(
    ("key", "written"), [("qwen3", "<think>\nHm.\n</think>\n\nYes."), ("qwq", "Hm.\n</think>\n\nYes.")]
)
def test_results_and_labels_are_without_thoughts(key, written, tiny_tokenizer_copy):
    template = get_template(key, tiny_tokenizer_copy)
    for wanted in (Message("assistant", "No.", reasoning="Ah."), Message("assistant", "<think>Ah.</think>\n\nNo.")):
        found = result_of(Conversation((Message("user", "Q"), wanted)), written, template)
        assert (found["reasoning_content"], found["response"], found["label"]) == ("Hm.", "Yes.", "No.")
    plain = result_of(Conversation((Message("user", "Q"),)), "Yes.", get_template("chatml", tiny_tokenizer_copy))
    assert "reasoning_content" not in plain


def test_the_first_stop_word_to_end_ends_a_text():
    words = StopWords(["abcd", "bc", "xyz", "b"])
    assert words.add("1ab") == "1a"
    assert words.found
    for size in (1, 2, 5):
        words = StopWords(["Observation:", "\n\n", "bs!"])
        text = "An Obs. then Obs!\n3"
        pieces = iter([text[start : start + size] for start in range(0, len(text), size)])
        told = ""
        while not words.found:
            told += words.add(next(pieces))
        assert told == "An Obs. then O"
        words = StopWords(["Observation:"])
        assert words.add("ends in Obser") == "ends in "
        assert words.rest() == "Obser"
