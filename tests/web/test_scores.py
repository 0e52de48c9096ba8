"""The page of a reward model, without a browser: no chat, but the score of a prompt and a response."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from llmtune import RmArguments, rm
from llmtune.arguments.infer import LoadArguments
from llmtune.data.comparisons import to_responses
from llmtune.errors import LlmtuneError
from llmtune.inference.load import load_scorer
from llmtune.web.scores import score_of

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    made = rm(
        RmArguments(
            model_type="llmtune-tiny", dataset=["tiny-pairs#24"], dataset_test_ratio=0, batch_size=4, max_steps=4,
            gradient_accumulation_steps=1, learning_rate=5e-3, logging_steps=1, report_to=["none"],
            output_dir=str(tmp_path_factory.mktemp("rewards")),
        )
    )  # fmt: skip
    assert made.last_checkpoint is not None
    return made.last_checkpoint


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit puts its script in the place of `__main__`, which processes that tests start later would run again."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def opened(*argv: str) -> Any:
    def script(argv: tuple[str, ...]) -> None:
        from llmtune.web.page import page

        page(argv)

    return AppTest.from_function(script, args=(argv,), default_timeout=60).run()


def test_the_page_shows_scores(rewards):
    page = opened("--ckpt_dir", str(rewards))
    assert not page.exception
    assert "This is a reward model: it scores responses, and writes none" in page.info[0].value
    assert not page.chat_input
    page.text_area(key="prompt").set_value("What is 1 plus 1?")
    page.text_area(key="response").set_value("1 plus 1 is 2.")
    page.button[0].click().run()
    assert not page.exception
    row = to_responses({"query": "What is 1 plus 1?", "response": "1 plus 1 is 2."})
    scorer = load_scorer(LoadArguments(ckpt_dir=str(rewards)))
    wanted = f"{scorer.scores_of(scorer.encode([row]))[0][0]:.4f}"
    assert page.table[0].value["Score"].tolist() == [wanted]
    page.text_area(key="response").set_value("No.")
    page.button[0].click().run()
    assert page.table[0].value["Response"].tolist() == ["No.", "1 plus 1 is 2."]
    page.text_area(key="response").set_value(" ")
    page.button[0].click().run()
    assert "empty" in page.error[0].value
    assert len(page.table[0].value) == 2


def test_the_page_is_in_chinese_too(rewards):
    page = opened("--ckpt_dir", str(rewards), "--lang", "zh")
    assert "奖励模型" in page.info[0].value


def test_an_empty_response_has_no_score(rewards):
    scorer = load_scorer(LoadArguments(ckpt_dir=str(rewards)))
    with pytest.raises(LlmtuneError, match="empty"):
        score_of(scorer, "What?", "")
