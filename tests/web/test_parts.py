"""What the page is made of, without a browser."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import pytest

from llmtune.cli import web as command
from llmtune.errors import MissingPackageError, UsageError
from llmtune.types import Message
from llmtune.web import training_tab
from llmtune.web.chat_tab import ChatHistory
from llmtune.web.training_tab import find_runs, last_record


def test_each_model_reads_its_own_answers():
    chat = ChatHistory()
    chat.ask("one?")
    chat.turns[-1].answers |= {"a": "1", "b": "I"}
    chat.ask("two?", ("x.png",))
    own = chat.conversation("b", system="Be brief.", several_turns=True)
    assert own.messages == (
        Message("system", "Be brief."),
        Message("user", "one?"),
        Message("assistant", "I"),
        Message("user", "<image>two?"),
    )
    assert own.images == ("x.png",)
    newcomer = chat.conversation("c", system=None, several_turns=True)
    assert newcomer.messages[1] == Message("assistant", "1")
    single = chat.conversation("b", system=None, several_turns=False)
    assert single.messages == (Message("user", "<image>two?"),)


def test_pictures_stand_where_the_asker_says():
    chat = ChatHistory()
    chat.ask("Is <image> beside it?", ("x.png", "y.png"))
    (message,) = chat.conversation("a", system=None, several_turns=True).messages
    assert message == Message("user", "<image>Is <image> beside it?")


def test_retry_forgets_the_last_answers_alone():
    chat = ChatHistory()
    for question in ("one?", "two?"):
        chat.ask(question)
        chat.turns[-1].answers["a"] = "x"
    chat.turns[-1].stopped.add("a")
    chat.forget_answers()
    assert [turn.answers for turn in chat.turns] == [{"a": "x"}, {}]
    assert not chat.turns[-1].stopped


def test_runs_are_found_newest_first(tmp_path):
    for age, name in enumerate(("m/v1", "m/v0", "other/deep/v3")):
        run = tmp_path / name
        run.mkdir(parents=True)
        (run / "logging.jsonl").write_text(json.dumps({"global_step": age}) + '\n{"global_st')
        os.utime(run / "logging.jsonl", (1000 - age, 1000 - age))
    assert [str(run.relative_to(tmp_path)) for run in find_runs(tmp_path)] == ["m/v1", "m/v0", "other/deep/v3"]
    assert find_runs(tmp_path / "m" / "v0") == [tmp_path / "m" / "v0"]
    assert last_record(tmp_path / "m" / "v0" / "logging.jsonl") == {"global_step": 1}


def test_secrets_stay_out_of_the_command_line(monkeypatch, capsys):
    seen: list[str] = []
    monkeypatch.setattr(command, "replace_process", seen.extend)
    monkeypatch.setenv("LLMTUNE_API_KEY", "")
    command.run(["--model_type", "llmtune-tiny", "--port", "0", "--api_key", "s3cret", "--top_k", "7"])
    assert seen[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert "s3cret" not in seen
    assert os.environ["LLMTUNE_API_KEY"] == "s3cret"
    assert seen[seen.index("--") + 1 :] == ["--model_type", "llmtune-tiny", "--port", "0", "--top_k", "7"]
    assert int(seen[seen.index("--server.port") + 1]) > 0


def test_a_public_host_needs_a_key(monkeypatch):
    with pytest.raises(UsageError, match="needs an API key: set LLMTUNE_API_KEY"):
        command.run(["--model_type", "llmtune-tiny", "--host", "0.0.0.0"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"llmtune\[web\]"):
        command.run(["--model_type", "llmtune-tiny"])


def test_a_dry_run_shows_the_address(capsys):
    assert command.run(["--model_type", "llmtune-tiny", "--dry_run", "true", "--port", "8600"]) == 0
    assert "http://127.0.0.1:8600" in capsys.readouterr().out


def test_responses_of_an_online_stage_are_shown_newest_first(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(training_tab.st, "expander", lambda title: contextlib.nullcontext(shown.append(title)))
    monkeypatch.setattr(training_tab.st, "dataframe", lambda rows, **_: shown.append(rows))
    file = tmp_path / "answers.jsonl"
    training_tab._answers(file, {"answers": "Responses"})
    assert shown == []
    file.write_text("".join(json.dumps({"round": n, "response": str(n), "reward": 0.5}) + "\n" for n in range(50)))
    training_tab._answers(file, {"answers": "Responses"})
    title, rows = shown
    assert title == "Responses"
    assert [row["round"] for row in rows] == list(range(49, 9, -1))
