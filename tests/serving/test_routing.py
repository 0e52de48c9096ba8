"""Which way of batching `--batching auto` takes, and that it says why."""

from __future__ import annotations

import types
from typing import Any

import pytest

from llmtune import InferArguments
from llmtune.arguments.service import ServeArguments
from llmtune.inference.batching import Batcher
from llmtune.inference.generation import Generation
from llmtune.inference.load import load_engine
from llmtune.serving import routing as choose

TINY = {"model_type": "llmtune-tiny", "port": 0}


def engine(**changes: Any) -> Any:
    """What the choice looks at, of a model on a GPU."""
    facts = {"device": "cuda", "attention": "sdpa", "media": None, "adapters": (), "map": {}} | changes
    config = types.SimpleNamespace(_attn_implementation=facts["attention"])
    config.get_text_config = lambda: config
    device = types.SimpleNamespace(type=facts["device"])
    model = types.SimpleNamespace(config=config, device=device, hf_device_map=facts["map"])
    template = types.SimpleNamespace(media=facts["media"])
    return types.SimpleNamespace(model=model, template=template, adapters=facts["adapters"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"attention": "flash_attention_2"}, ""),
        ({"map": {"": 0}}, ""),
        ({"device": "cpu"}, "no GPU"),
        ({"media": object()}, "vision model"),
        ({"adapters": ("base",)}, "several adapters"),
        ({"map": {"layers.0": 0, "layers.1": 1}}, "several GPUs"),
        ({"attention": "varlen"}, "varlen"),
    ],
)
def test_the_reason_for_the_queue(changes, reason):
    found = choose.reason_for_queue(engine(**changes))
    assert reason in found
    assert bool(found) == bool(reason)


def test_auto_on_a_cpu_is_the_queue_and_says_so(capsys):
    tiny = load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))
    batcher = choose.choose_batcher(tiny, ServeArguments(**TINY))
    assert isinstance(batcher, Batcher)
    batcher.close()
    assert "Batching: llmtune's queue, since there is no GPU" in capsys.readouterr().err


def test_auto_tries_before_it_takes(monkeypatch, capsys):
    """As on a GPU: continuous batching that gives an answer is taken, one that fails is not."""
    from llmtune.inference.continuous import ContinuousBatcher

    monkeypatch.setattr(choose, "reason_for_queue", lambda engine: "")
    tiny = load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))
    before = tiny.model.config._attn_implementation
    with monkeypatch.context() as broken:
        broken.setattr(Generation, "add", lambda row, token: 1 / 0)
        batcher = choose.choose_batcher(tiny, ServeArguments(**TINY))
    assert isinstance(batcher, Batcher)
    batcher.close()
    assert "warning: Batching: llmtune's queue, since continuous batching failed" in capsys.readouterr().err
    assert tiny.model.config._attn_implementation == before
    batcher = choose.choose_batcher(tiny, ServeArguments(**TINY))
    assert isinstance(batcher, ContinuousBatcher)
    batcher.close()
