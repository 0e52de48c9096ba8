"""What the page is made of, without a browser."""

from __future__ import annotations

import json
import os
import sys

import pytest

from llmtune.arguments.service import WebArguments
from llmtune.cli import web as command
from llmtune.errors import MissingPackageError, UsageError
from llmtune.inference.sampling import Sampling
from llmtune.types import Message
from llmtune.web.chat import how_it_samples
from llmtune.web.history import ChatHistory, Conversations, browser_token
from llmtune.web.page import TEXTS


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


def test_a_stopped_response_keeps_its_text():
    chat = ChatHistory()
    chat.ask("one?")
    turn = chat.turns[-1]
    turn.answers["a"], turn.writers["a"], chat.unfinished = "so f", object(), ["a", "b"]
    chat.stop()
    assert turn.answers == {"a": "so f", "b": ""}
    assert turn.stopped == {"a", "b"}
    assert not turn.writers
    assert not chat.unfinished


def test_a_conversation_is_found_by_its_id_alone():
    kept = Conversations()
    key, visit = kept.open(None)
    visit.history.ask("secret?")
    assert len(key) > 20
    assert kept.open(key) == (key, visit)
    assert kept.find(key) is visit
    for guess in (None, "", "mine", key[:-1]):
        assert kept.find(guess) is None
        other, found = kept.open(guess)
        assert other not in (key, guess), "an id is made by the server alone"
        assert not found.history.turns


def test_conversations_are_bounded_in_number_and_size():
    kept = Conversations(max_number=3, max_characters=100)
    keys = [kept.open(None)[0] for _ in range(3)]
    kept.open(keys[0])  # used last
    kept.open(None)
    assert [kept.find(key) is not None for key in keys] == [True, False, True]
    kept.open(keys[0])[1].history.ask("x" * 90)
    kept.open(keys[2])[1].history.ask("y" * 90)
    assert kept.open(keys[2])[1].history.turns, "the one in use stays"
    assert kept.find(keys[0]) is None


def test_a_browser_is_known_by_its_cookie_under_any_mask():
    assert browser_token("2|00000000|6162636465|1") == browser_token("2|01010101|6063626564|2") == b"abcde"
    assert all(browser_token(text) is None for text in (None, "", "2|zz|61|1", "2||61|1", "2|00||1", "abc"))


def web_arguments(**given):
    return WebArguments(model_type=None if "ckpt_dir" in given else "llmtune-tiny", **given)


def checkpoint(folder, **generation):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "sft_args.json").write_text(json.dumps({"model_type": "llmtune-tiny", "sft_type": "full"}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return str(folder)


def test_decoding_is_greedy_unless_a_flag_or_the_checkpoint_says_otherwise(tmp_path):
    assert Sampling.of(web_arguments()).do_sample is False
    given = web_arguments(temperature=0.3)
    assert (given.do_sample, given.temperature, given.top_k, given.top_p) == (True, 0.3, 20, 0.9)
    assert web_arguments(temperature=0.3, do_sample=False).do_sample is False
    assert web_arguments(do_sample=True).temperature == 0.9
    saved = checkpoint(tmp_path, do_sample=True, temperature=0.6, top_k=50)
    found = web_arguments(ckpt_dir=saved)
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.6, 50, 0.9)
    assert web_arguments(ckpt_dir=saved, temperature=0.2).temperature == 0.2
    assert web_arguments(ckpt_dir=saved, do_sample=False).do_sample is False
    for settings in ({"do_sample": False, "temperature": 0.6}, {}):
        assert web_arguments(ckpt_dir=checkpoint(tmp_path, **settings)).do_sample is False
    broken = web_arguments(ckpt_dir=checkpoint(tmp_path, do_sample=True, temperature="hot", top_k=-1, top_p=True))
    assert (broken.temperature, broken.top_k, broken.top_p) == (0.9, 20, 0.9)


def test_the_page_says_how_it_samples():
    english, chinese = ({key: pair[place] for key, pair in TEXTS.items()} for place in (0, 1))
    assert how_it_samples(Sampling(), english).startswith("Greedy: always the most likely token.")
    warm = Sampling(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)
    assert how_it_samples(warm, english) == "Sampling at temperature 0.7, top p 0.8, top k 20"
    assert how_it_samples(Sampling(do_sample=True, temperature=1), chinese) == "采样,温度 1"


def test_the_flag_of_the_training_tab_names_the_board():
    with pytest.raises(UsageError, match=r"--run_dir is gone: .*`llmtune board --root FOLDER`"):
        command.run(["--model_type", "llmtune-tiny", "--run_dir", "output"])


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
