"""A served reward model: scores in the shape of vLLM's endpoints, and the same ones as everywhere."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from llmtune.arguments.infer import LoadArguments
from llmtune.arguments.service import ServeArguments
from llmtune.data.comparisons import to_responses
from llmtune.errors import UsageError
from llmtune.inference.batching import Closed, QueueFull
from llmtune.inference.load import load_scorer
from llmtune.inference.score_queue import ScoreQueue
from llmtune.serving.app import start_message
from llmtune.serving.vllm import vllm_command

EXACT = 1e-5
MESSAGES = [{"role": "user", "content": "What is 1 plus 1?"}, {"role": "assistant", "content": "1 plus 1 is 2."}]


@pytest.fixture(scope="module")
def expected(rewards: Any) -> Any:
    """(question, response) -> the score."""
    scorer = load_scorer(LoadArguments(ckpt_dir=str(rewards)))

    def score(question: str, response: str) -> float:
        return scorer.scores_of(scorer.encode([to_responses({"query": question, "response": response})]))[0][0]

    return score


def post(server: Any, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body)


@pytest.mark.medium
@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_scores_have_the_shape_of_vllm_and_the_values_of_infer(scored, expected, path):
    wanted = expected("What is 1 plus 1?", "1 plus 1 is 2.")
    found = post(scored, path, model="llmtune-tiny", messages=MESSAGES).json()
    assert set(found) == {"id", "object", "created", "model", "data", "usage"}
    assert found["object"] == "list"
    assert found["model"] == "llmtune-tiny"
    (one,) = found["data"]
    assert (one["index"], one["object"]) == (0, "score")
    assert one["score"] == pytest.approx(wanted, abs=EXACT)
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 10
    squashed = post(scored, path, messages=MESSAGES, use_activation=True).json()["data"][0]["score"]
    assert squashed == pytest.approx(1 / (1 + math.exp(-wanted)), abs=EXACT)


@pytest.mark.medium
def test_texts_are_paired_one_to_one_one_to_many_and_many_to_many(scored, expected):
    def scores(text_1: Any, text_2: Any) -> list[float]:
        found = post(scored, "/v1/score", text_1=text_1, text_2=text_2).json()["data"]
        assert [one["index"] for one in found] == list(range(len(found)))
        return [one["score"] for one in found]

    answers = ["1 plus 1 is 2.", "No.", "A much longer response, that says nothing at all."]
    wanted = [expected("What is 1 plus 1?", answer) for answer in answers]
    assert scores("What is 1 plus 1?", answers[0]) == pytest.approx(wanted[:1], abs=EXACT)
    assert scores("What is 1 plus 1?", answers) == pytest.approx(wanted, abs=EXACT)
    wanted = [expected(f"question {number}", answer) for number, answer in enumerate(answers)]
    assert scores([f"question {number}" for number in range(3)], answers) == pytest.approx(wanted, abs=EXACT)


@pytest.mark.medium
def test_classes_have_the_shape_of_vllm(scored, expected):
    wanted = expected("What is 1 plus 1?", "1 plus 1 is 2.")
    found = post(scored, "/classify", model="llmtune-tiny", messages=MESSAGES).json()
    assert set(found) == {"id", "object", "created", "model", "data", "usage"}
    (one,) = found["data"]
    assert (one["index"], one["label"], one["num_classes"]) == (0, "LABEL_0", 1)
    assert one["probs"] == pytest.approx([1 / (1 + math.exp(-wanted))], abs=EXACT)
    template = scored.service._writers
    with template.one(None, 10) as writer:
        row = to_responses({"query": "What is 1 plus 1?", "response": "1 plus 1 is 2."})
        whole = writer.render(row.conversation(0)).rstrip()
    found = post(scored, "/classify", input=[whole, "another text"], use_activation=False).json()["data"]
    assert found[0]["probs"] == pytest.approx([wanted], abs=EXACT)  # a text that a client has rendered
    assert len(found) == 2


@pytest.mark.medium
@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/score", {"messages": MESSAGES[:1]}, 400, "messages"),
        ("/v1/score", {}, 400, "messages"),
        ("/v1/score", {"text_1": "a"}, 400, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "messages": MESSAGES}, 400, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, 400, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": " "}, 400, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b"] * 300}, 400, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "b " * 4000}, 400, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "model": "other"}, 404, "model"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "more": 1}, 400, "more"),
        ("/classify", {"input": ""}, 400, "input"),
        ("/classify", {}, 400, "messages"),
        ("/v1/chat/completions", {"model": "llmtune-tiny", "messages": MESSAGES[:1]}, 400, "model"),
        ("/v1/completions", {"model": "llmtune-tiny", "prompt": "a"}, 400, "model"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_bad_request_names_its_parameter(scored, path, body, status, param):
    found = post(scored, path, **body)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    if "completions" in path:
        assert "is a reward model: it scores responses, and generates none" in error["message"]
        assert error["code"] == "reward_model"


@pytest.mark.medium
def test_the_other_routes_and_the_page_of_the_api(scored):
    models = httpx.get(f"{scored.url}/v1/models").json()["data"]
    assert [one["id"] for one in models] == ["llmtune-tiny"]
    assert httpx.get(f"{scored.url}/v1/models/llmtune-tiny").json()["id"] == "llmtune-tiny"
    assert httpx.get(f"{scored.url}/health").json() == {"status": "ok"}
    post(scored, "/v1/score", text_1="a", text_2=["b", "c"])
    metrics = httpx.get(f"{scored.url}/metrics").text
    assert 'llmtune_requests_total{path="/v1/score",status="200"}' in metrics
    before = float(next(line for line in metrics.splitlines() if line.startswith("llmtune_scores_total")).split()[1])
    post(scored, "/v1/score", text_1="a", text_2=["b", "c"])
    metrics = httpx.get(f"{scored.url}/metrics").text
    assert f"llmtune_scores_total {before + 2}" in metrics
    paths = httpx.get(f"{scored.url}/openapi.json").json()["paths"]
    assert {"/v1/score", "/classify", "/v1/models", "/health", "/metrics"} <= set(paths)
    message = start_message(scored.service, 1)
    assert "/v1/score" in message
    body = json.loads(message.split("-d '")[1].removesuffix("'"))
    assert post(scored, "/v1/score", **body).status_code == 200


@pytest.mark.medium
def test_requests_need_the_key_and_fit_the_limits(serving, rewards):
    with serving(ckpt_dir=str(rewards), api_key="secret", max_body_size=2000, max_prompt_length=40) as server:
        assert post(server, "/v1/score", messages=MESSAGES).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        for body, status in (
            ({"messages": MESSAGES}, 200), ({"text_1": "a", "text_2": "b" * 3000}, 413),
            ({"text_1": "a", "text_2": "b " * 60}, 400),
        ):  # fmt: skip
            found = httpx.post(f"{server.url}/v1/score", json=body, headers=headers)
            assert found.status_code == status, found.text


@pytest.mark.medium
def test_many_clients_get_their_own_scores(scored, expected):
    questions = [(f"question {number}", "yes " * (number % 7 + 1)) for number in range(24)]

    def ask(one: tuple[str, str]) -> float:
        return float(post(scored, "/v1/score", text_1=one[0], text_2=one[1]).json()["data"][0]["score"])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, questions))
    assert found == pytest.approx([expected(*one) for one in questions], abs=EXACT)


@pytest.mark.medium
def test_what_reward_models_are_not_served_with(rewards, tmp_path):
    with pytest.raises(UsageError, match="a reward model is served alone"):
        ServeArguments(ckpt_dir=str(rewards), adapters=[f"other={rewards}"])
    with pytest.raises(UsageError, match="a reward model is served alone"):
        ServeArguments(model_type="llmtune-tiny", adapters=[f"other={rewards}"])
    args = ServeArguments(ckpt_dir=str(rewards), backend="vllm", temperature=0.1)
    with pytest.raises(UsageError, match="merge it and give the folder to vLLM"):
        vllm_command(args)
    assert args.unused == ["--temperature"]


# The queue


class FakeScorer:
    """Scores a sequence by its first id, when it is let; fails at id 13."""

    def __init__(self) -> None:
        self.go, self.sizes = threading.Event(), list[int]()

    def scores(self, sequences: Any, batch_size: int) -> list[float]:
        assert self.go.wait(20)
        self.sizes.append(len(sequences))
        if any(ids[0] == 13 for ids in sequences):
            raise RuntimeError("out of memory")
        return [float(ids[0]) for ids in sequences]


@pytest.fixture
def fake() -> Iterator[tuple[FakeScorer, ScoreQueue]]:
    scorer = FakeScorer()
    waiting: Any = ScoreQueue(scorer, max_batch_size=4, max_queue=4)  # type: ignore[arg-type]
    yield scorer, waiting
    scorer.go.set()
    waiting.close()


def test_jobs_share_batches_and_a_full_queue_refuses(fake):
    scorer, waiting = fake
    first = waiting.submit([[1]])
    while not waiting.num_running:
        pass
    more = [waiting.submit([[2], [3]]), waiting.submit([[4], [5], [6]])]
    with pytest.raises(QueueFull):
        waiting.submit([[7], [8], [9]])
    scorer.go.set()
    assert first.result(20) == [1.0]
    assert [one.result(20) for one in more] == [[2.0, 3.0], [4.0, 5.0, 6.0]]
    assert scorer.sizes == [1, 4, 1]


def test_a_sequence_that_fails_fails_alone(fake):
    scorer, waiting = fake
    scorer.go.set()
    bad, good = waiting.submit([[1], [13]]), waiting.submit([[3]])
    with pytest.raises(RuntimeError, match="out of memory"):
        bad.result(20)
    assert good.result(20) == [3.0]


def test_cancelled_jobs_leave_and_a_closed_queue_refuses(fake):
    scorer, waiting = fake
    first = waiting.submit([[1]])
    while not waiting.num_running:
        pass
    second = waiting.submit([[2]] * 7)
    with pytest.raises(QueueFull):
        waiting.submit([[4]])
    assert second.cancel()
    third = waiting.submit([[4]])
    waiting.refuse()
    with pytest.raises(Closed):
        waiting.submit([[5]])
    scorer.go.set()
    assert first.result(20) == [1.0]
    assert third.result(20) == [4.0]
    assert scorer.sizes == [1, 1]
