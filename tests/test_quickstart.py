"""The first five minutes: trained as the pages say, the embedded model answers two questions in one conversation."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from llmtune import InferArguments, SftArguments, sft
from llmtune.arguments.parser import parse
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.types import Conversation, Message

from .shown_commands import ROOT, blocks, llmtune_lines

ANSWERS = {"Who are you?": "Tuny", "What is the capital of France?": "The capital of France is Paris."}


def first_training(page: Path) -> str:
    return next(
        line for block in blocks(page, "bash") for line in llmtune_lines(block) if line.startswith("llmtune sft")
    )


COMMANDS = {page: first_training(ROOT / page) for page in ("README.md", "docs/quickstart.md")}


def test_the_chinese_pages_train_alike() -> None:
    for english, chinese in (("README.md", "README_CN.md"), ("docs/quickstart.md", "docs/zh/quickstart.md")):
        assert first_training(ROOT / chinese) == COMMANDS[english]


@pytest.fixture(scope="module", params=COMMANDS)
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """(questions) -> the greedy answers of the page's checkpoint in one conversation."""
    words = [*shlex.split(COMMANDS[request.param])[2:], "--output_dir", str(tmp_path_factory.mktemp("output"))]
    result = sft(parse(SftArguments, words, command="sft"))
    engine = load_engine(InferArguments(ckpt_dir=str(result.checkpoint), eval_human=True))

    def ask(*questions: str) -> list[str]:
        messages: list[Message] = []
        for question in questions:
            messages.append(Message("user", question))
            answer = "".join(engine.stream(Conversation(tuple(messages)), Sampling(max_new_tokens=40)))
            messages.append(Message("assistant", answer))
        return [message.content for message in messages[1::2]]

    return ask


@pytest.mark.slow
def test_two_questions_of_one_conversation_are_answered_in_both_orders(chat: Callable[..., list[str]]) -> None:
    for questions in permutations(ANSWERS):
        for question, answer in zip(questions, chat(*questions), strict=True):
            assert ANSWERS[question] in answer, questions
