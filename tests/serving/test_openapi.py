"""Whatever the OpenAPI page allows, and what it does not, never makes the server fail."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

pytestmark = pytest.mark.slow

BOUNDED = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
MESSAGES = [{"role": "user", "content": "question 3"}]


@pytest.mark.parametrize("kind", ["allowed", "answered", "not allowed"])
def test_no_request_makes_the_server_fail(server, kind):
    """`answered`: messages and prompts that make sense, so that all the other fields reach the model."""
    mode = GenerationMode.NEGATIVE if kind == "not allowed" else GenerationMode.POSITIVE
    page = httpx.get(f"{server.url}/openapi.json").json()
    assert set(page["paths"]) >= {"/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics"}
    told: Counter[int] = Counter()
    for result in schemathesis.openapi.from_dict(page).get_all_operations():
        operation = result.ok()
        if kind != "allowed" and operation.method == "get":
            continue  # any path is one

        @BOUNDED
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            if isinstance(case.body, dict):
                if isinstance(case.body.get("model"), str):
                    case.body["model"] = "llmtune-tiny"  # other names are 404, and nothing more is looked at
                if kind != "not allowed":
                    case.body["max_tokens"] = 4
                if kind == "answered":
                    case.body |= {"prompt": "x"} if "prompt" in case.body else {"messages": MESSAGES}
                    case.body.pop("best_of", None)
            response = case.call(base_url=server.url)
            told[response.status_code] += 1
            case.validate_response(response, checks=[not_a_server_error])
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    print(kind, dict(told))
    assert told[200 if kind == "answered" else 400] > 60


@pytest.mark.parametrize("kind", ["allowed", "answered", "not allowed"])
def test_no_request_makes_a_server_of_scores_fail(scored, kind):
    mode = GenerationMode.NEGATIVE if kind == "not allowed" else GenerationMode.POSITIVE
    page = httpx.get(f"{scored.url}/openapi.json").json()
    told: Counter[int] = Counter()
    for result in schemathesis.openapi.from_dict(page).get_all_operations():
        operation = result.ok()
        if operation.path not in ("/v1/score", "/classify"):
            continue

        @BOUNDED
        @given(operation.as_strategy(generation_mode=mode))
        def check(case):
            if isinstance(case.body, dict):
                if isinstance(case.body.get("model"), str):
                    case.body["model"] = "llmtune-tiny"
                if kind == "answered":
                    for name in ("text_1", "text_2", "input"):
                        case.body.pop(name, None)
                    case.body["messages"] = [*MESSAGES, {"role": "assistant", "content": "answer"}]
            response = case.call(base_url=scored.url)
            told[response.status_code] += 1
            case.validate_response(response, checks=[not_a_server_error])
            if response.status_code >= 400:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    print(kind, dict(told))
    assert told[200 if kind == "answered" else 400] > 60
