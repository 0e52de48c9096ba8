"""Rollouts from a server, and the adapter that a training hands over: ids in, ids and log-probabilities out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmtune.arguments.service import ServeArguments
from llmtune.checkpoint import ADAPTER_CONFIG, ADAPTER_FILE, adapter_folder
from llmtune.errors import LlmtuneError, RolloutError, UsageError
from llmtune.rollouts.engine import RolloutRequest
from llmtune.rollouts.http import HttpEngine
from llmtune.serving import adapter_routes

pytestmark = pytest.mark.medium  # trainings

KEY = "secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def lora(serving, tuned, root):
    """A server that loads adapters."""
    with serving(ckpt_dir=str(tuned), api_key=KEY, adapter_root=str(root)) as found:
        yield found


@pytest.fixture
def engine():
    """`engine(server, ...)`; closed after the test."""
    made = []

    def make(server, **options) -> HttpEngine:
        options = {"model": "llmtune-tiny", "vocab_size": 2048, "api_key": KEY, "timeout_s": 60.0} | options
        made.append(HttpEngine(server.url, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def prompt(server, number: int) -> tuple[int, ...]:
    from llmtune.types import Conversation, Message

    template = server.service.engine.template
    return tuple(template.prompts([Conversation((Message("user", f"question {number}"),))])[0].input_ids)


def requests(server, count: int = 6) -> list[RolloutRequest]:
    return [RolloutRequest(prompt(server, number % 3), (1, number), 10) for number in range(count)]


def text(server, ids: list[int]) -> str:
    return server.service.engine.tokenizer.decode(ids, skip_special_tokens=True)


def post(server, path: str, headers=HEADERS, **body) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ids_and_the_log_probabilities_they_were_drawn_with(lora, engine, temperature):
    http = engine(lora, temperature=temperature, max_in_flight=3)
    found = http.sample(requests(lora))
    assert [one.ids for one in http.sample(requests(lora)[::-1])] == [one.ids for one in found[::-1]]
    assert not http.is_exact
    model, stops = lora.service.engine.model, lora.service.engine.template.stop_token_ids
    assert any(one.finish_reason == "stop" for one in found)
    for request, one in zip(requests(lora), found, strict=True):
        assert (one.ids[-1] in stops) == (one.finish_reason == "stop")
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *one.ids]])).logits[0, len(request.prompt_ids) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(one.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(one.logps), logps, atol=1e-4)  # fp32, in other batches


def test_no_tokens_are_no_request(lora, engine):
    (found,) = engine(lora).sample([RolloutRequest((5,), (0,), 0)])
    assert (found.ids, found.finish_reason) == ([], "length")


def test_each_update_is_what_is_sampled_from_next(lora, engine, root, adapters):
    colors = iter(("red", "blue", "red"))
    http = engine(
        lora,
        temperature=0.0,
        save_adapter=lambda folder: shutil.copytree(adapter_folder(adapters[next(colors)]), folder),
        adapter_folder=root / "run",
        stop_token_ids=lora.service.engine.template.stop_token_ids,
    )
    asked = [RolloutRequest(prompt(lora, number), (number,), 12) for number in range(3)]
    said = [[text(lora, one.ids) for one in http.sample(asked)]]
    for step in (1, 2, 3):
        http.update(step)
        said.append([text(lora, one.ids) for one in http.sample(asked)])
        assert [folder.name for folder in (root / "run").iterdir()] == [f"step-{step}"]
    assert said == [[wanted.format(number) for number in range(3)] for wanted in (
        "answer {}!", "red {}.", "blue {}.", "red {}.",
    )]  # fmt: skip
    assert len(lora.service.engine.model.peft_config) == 1  # no former one is kept
    assert post(lora, "unload_lora_adapter", lora_name="policy").status_code == 200
    assert post(lora, "completions", model="policy", prompt="x").status_code == 404
    again = engine(lora, temperature=0.0).sample(asked)
    assert [text(lora, one.ids) for one in again] == said[0]  # the base is as it was


def copy_of(adapter: Path, folder: Path, change=None, config=None) -> Path:
    shutil.copytree(adapter_folder(adapter), folder)
    if change is not None:
        save_file(change(load_file(folder / ADAPTER_FILE)), folder / ADAPTER_FILE)
    if config is not None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_what_is_not_loaded_leaves_the_model_as_it_was(lora, root, adapters, tuned, tmp_path):
    red = adapters["red"]
    copy_of(red, tmp_path / "outside")
    copy_of(red, root / "narrow", lambda found: {name: value[:, :3].contiguous() for name, value in found.items()})
    copy_of(red, root / "half", lambda found: dict(list(found.items())[:3]))
    copy_of(red, root / "ia3", config={"peft_type": "IA3"})
    torch.save({}, copy_of(red, root / "pickled") / "adapter_model.bin")
    (root / "pickled" / ADAPTER_FILE).unlink()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").write_text("x")
    before = {name: value.clone() for name, value in lora.service.engine.model.state_dict().items()}
    for path in (
        "narrow", "half", "ia3", "pickled", "file", "nowhere", ".", "..", "link", "../outside", "a\0b", "x" * 4000,
        str(tmp_path / "outside"), str(tuned), "/etc",
    ):  # fmt: skip
        answer = post(lora, "load_lora_adapter", lora_name="bad", lora_path=path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "lora_path"), path
        outside = path in ("file", "nowhere", ".", "..", "link", "../outside", "a\0b", "x" * 4000) or path[0] == "/"
        assert ("not a folder below" in answer.json()["error"]["message"]) == outside, path
    after = lora.service.engine.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(lora.service.models) == ["llmtune-tiny"]


def test_names(lora, root, adapters, monkeypatch):
    monkeypatch.setattr(adapter_routes, "MAX_LOADED", 2)
    for color, path in adapters.items():
        copy_of(path, root / f"name-{color}")
    load = {"lora_path": "name-red"}
    assert post(lora, "load_lora_adapter", lora_name="one", **load).text.startswith("Success")
    for name, options, words in (
        ("one", {}, "set load_inplace"),
        ("llmtune-tiny", {"load_inplace": True}, "already in use"),
        ("base", {"load_inplace": True}, "already in use"),
        ("a/b", {}, "pattern"),
    ):
        answer = post(lora, "load_lora_adapter", lora_name=name, **load, **options)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]
    post(lora, "load_lora_adapter", lora_name="two", lora_path="name-blue")
    assert "unload one" in post(lora, "load_lora_adapter", lora_name="three", **load).json()["error"]["message"]
    said = {}
    for name in ("llmtune-tiny", "one", "two"):  # side by side, as those of --adapters
        answer = post(lora, "chat/completions", model=name, messages=[{"role": "user", "content": "question 4"}])
        said[name] = answer.json()["choices"][0]["message"]["content"]
    assert said == {"llmtune-tiny": "answer 4!", "one": "red 4.", "two": "blue 4."}
    assert post(lora, "unload_lora_adapter", lora_name="none").status_code == 404
    for name in ("one", "two"):
        assert post(lora, "unload_lora_adapter", lora_name=name).status_code == 200


def test_it_is_behind_the_key_and_off_by_default(lora, server, tmp_path):
    assert post(lora, "load_lora_adapter", headers={}, lora_name="a", lora_path="b").status_code == 401
    assert post(server, "load_lora_adapter", lora_name="a", lora_path="b").status_code == 404
    for flags, words in (
        ({"adapter_root": str(tmp_path)}, "API key"),
        ({"adapter_root": __file__, "api_key": KEY}, "not a folder"),
        ({"adapter_root": str(tmp_path), "api_key": KEY, "batching": "continuous"}, "continuous"),
    ):
        with pytest.raises(UsageError, match=words):
            ServeArguments(model_type="llmtune-tiny", **flags)


def test_errors_are_one_line_with_the_next_step(lora, server, engine, root, tmp_path):
    def said(http: HttpEngine, act=None) -> str:
        with pytest.raises(LlmtuneError) as err:
            http.sample(requests(lora, 40)) if act is None else act(http)
        assert "\n" not in str(err.value)
        return str(err.value)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True)

    options = {"save_adapter": save, "adapter_folder": root / "empty"}
    assert "refuses the API key" in said(engine(lora, api_key="wrong"))
    assert "does not serve nobody" in said(engine(lora, model="nobody"))
    assert "There is no server" in said(HttpEngine("127.0.0.1:9", model="a", vocab_size=5))
    assert "is not the URL" in said(engine(server), lambda _: HttpEngine("ftp://x", model="a", vocab_size=5))
    assert "another vocabulary" in said(engine(lora, vocab_size=4))
    assert "Start it with the model" in said(engine(lora), lambda http: http.sample([RolloutRequest((9999,), (0,), 4)]))
    assert "--adapter_root" in said(engine(server, **options), lambda http: http.update(1))
    assert "refuses the adapter" in said(engine(lora, **options), lambda http: http.update(1))
    elsewhere = options | {"adapter_folder": tmp_path}
    assert "Can it read" in said(engine(lora, **elsewhere), lambda http: http.update(1))


def test_a_busy_server_is_asked_again(serving, tuned, engine):
    with serving(ckpt_dir=str(tuned), max_batch_size=1, max_queue=1, max_n=1) as small:
        found = engine(small, max_in_flight=8).sample(requests(small, 12))
    assert all(one.ids for one in found)


def test_streamed_ids_and_other_stops_are_refused(server):
    for options, param in (({"stream": True}, "return_token_ids"), ({"stop_token_ids": [77]}, "stop_token_ids")):
        answer = post(server, "completions", model="llmtune-tiny", prompt=[5, 6], return_token_ids=True, **options)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_answers_of_another_server(server, engine):
    """What vLLM or a proxy could send: each is said, and none is taken for a rollout."""
    http = engine(server)
    request = RolloutRequest((5, 6), (0,), 4)
    good = {"token_ids": [7, 2], "prompt_token_ids": [5, 6], "finish_reason": "stop",
            "logprobs": {"token_logprobs": [-1.0, -2.0]}}  # fmt: skip
    assert http._rollout(request, {"choices": [good]}).ids == [7, 2]
    for change, words in (
        ({"token_ids": None}, "return_token_ids"),
        ({"prompt_token_ids": [5]}, "changed the ids"),
        ({"logprobs": None}, "log-probabilities"),
        ({"logprobs": {"token_logprobs": [None, -2.0]}}, "log-probabilities"),
        ({"finish_reason": "abort"}, "'abort'"),
    ):
        with pytest.raises(RolloutError, match=words):
            http._rollout(request, {"choices": [good | change]})
    with pytest.raises(RolloutError, match="OpenAI-compatible"):
        http._rollout(request, "<html>")


def online(tmp_path: Path, server, root: Path, tuned: Path, monkeypatch, **options) -> list[dict]:
    """The log of a grpo run whose responses the server samples."""
    from llmtune import GrpoArguments, grpo

    monkeypatch.setenv("LLMTUNE_API_KEY", KEY)
    (tmp_path / "mine.py").write_text(
        "def letter(completions, **kwargs):\n    return [text.count('e') / max(len(text), 1) for text in completions]\n"
    )
    settings = {
        "model_type": "llmtune-tiny", "model_id_or_path": str(tuned), "dataset": ["tiny-sums#16"],
        "rewards": [f"{tmp_path / 'mine.py'}:letter"],
        "max_new_tokens": 6, "num_generations": 4, "batch_size": 8,
        "gradient_accumulation_steps": 1, "max_steps": 4,
        "logging_steps": 1, "eval_steps": 4, "learning_rate": 2e-2, "report_to": ["none"], "warmup_ratio": 0.0,
        "lr_scheduler_type": "constant", "output_dir": str(tmp_path / "runs"), "rollout_url": server.url,
        "rollout_folder": str(root), "val_dataset_sample": 2, "temperature": 3.0,
    }  # fmt: skip
    folder = grpo(GrpoArguments(**(settings | options))).output_dir
    return [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines() if '"reward"' in line]


def test_a_training_samples_from_the_server_what_it_has_just_trained(lora, root, tuned, tmp_path, monkeypatch):
    """The server's probabilities are those of the model in training, step after step: its adapter has arrived."""
    log = online(tmp_path, lora, root, tuned, monkeypatch)
    assert len(log) == 4
    assert [one["sampling_ratio"] for one in log] == pytest.approx([1] * 4, abs=2e-3)


def test_an_adapter_that_does_not_arrive_shows_in_the_ratio(lora, root, tuned, tmp_path, monkeypatch):
    """That the test before this one can fail."""
    update = HttpEngine.update
    monkeypatch.setattr(HttpEngine, "update", lambda self, step: update(self, step) if step == 0 else None)
    log = online(tmp_path, lora, root, tuned, monkeypatch, max_steps=3)
    assert abs(log[-1]["sampling_ratio"] - 1) > 5e-3


def test_a_training_without_its_server_is_refused(lora, root, tuned, tmp_path, monkeypatch):
    with pytest.raises(RolloutError, match="no server at"):
        online(tmp_path, SimpleNamespace(url="http://127.0.0.1:9"), root, tuned, monkeypatch)
    with pytest.raises(RolloutError, match=r"serves .*, not nobody"):
        online(tmp_path, lora, root, tuned, monkeypatch, rollout_model="nobody")
