"""Several adapters over one base, chosen by the `model` of a request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from llmtune.arguments.service import ServeArguments
from llmtune.errors import UsageError
from llmtune.inference import batching

pytestmark = pytest.mark.medium  # two trainings


def answer(client, model: str, number: int) -> str:
    messages = [{"role": "user", "content": f"question {number}"}]
    return client.chat.completions.create(model=model, messages=messages).choices[0].message.content


def test_the_model_of_a_request_chooses(serving, tuned, adapters):
    flags = {"ckpt_dir": str(tuned), "adapters": [f"{name}={path}" for name, path in adapters.items()]}
    with serving(**flags, max_batch_size=4) as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["llmtune-tiny", "red", "blue"]
        expected = {"llmtune-tiny": "answer {}!", "red": "red {}.", "blue": "blue {}."}
        asked = [(name, number) for number in range(8) for name in expected]
        with ThreadPoolExecutor(12) as pool:  # all together: nobody gets a neighbour's adapter
            found = list(pool.map(lambda one: answer(client, *one), asked))
        assert found == [expected[name].format(number) for name, number in asked]


@pytest.mark.slow
def test_a_long_generation_of_one_adapter_does_not_block_another(serving, tuned, adapters, monkeypatch):
    """A long answer of one does not make the others wait for its end, and is what it would have been."""
    monkeypatch.setattr(batching, "TURN_S", 0.0)  # a turn is a step or two, on a machine of any speed
    flags = {"ckpt_dir": str(tuned), "adapters": [f"{name}={path}" for name, path in adapters.items()]}
    with serving(**flags) as server:
        client = server.client()
        options = {"max_tokens": 800, "logit_bias": {"2": -100.0, "0": -100.0}, "seed": 1, "temperature": 1.0}
        options |= {"model": "red", "messages": [{"role": "user", "content": "question 1"}]}
        alone = client.chat.completions.create(**options).choices[0].message.content
        begun = Event()

        def listen() -> str:
            pieces = []
            for chunk in client.chat.completions.create(**options, stream=True):
                pieces.append(chunk.choices[0].delta.content or "")
                begun.set()
            return "".join(pieces)

        with ThreadPoolExecutor(5) as pool:
            long = pool.submit(listen)
            assert begun.wait(60)
            others = list(pool.map(lambda number: answer(client, "blue", number), range(4)))
            assert not long.done()
            assert others == [f"blue {number}." for number in range(4)]
            assert long.result() == alone


def test_the_base_of_an_adapter_that_was_given_as_checkpoint(serving, adapters):
    with serving(ckpt_dir=str(adapters["red"]), served_model_name="mine") as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["mine", "base"]
        assert [answer(client, "mine", 4), answer(client, "base", 4), answer(client, "mine", 5)] == [
            "red 4.", "answer 4!", "red 5.",
        ]  # fmt: skip


def test_names_and_folders_that_make_no_sense(tuned, adapters):
    for item, text in (
        (str(adapters["red"]), "NAME=FOLDER"),
        (f"base={adapters['red']}", "already in use"),
        (f"whole={tuned}", "full weights"),
    ):
        with pytest.raises(UsageError, match=text):
            ServeArguments(ckpt_dir=str(tuned), adapters=[item])
