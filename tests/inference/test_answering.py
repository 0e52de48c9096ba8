"""Responses for many rows: in order, and the same at any number of rows at a time."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmtune import InferArguments
from llmtune.inference import answering
from llmtune.inference.answering import generations
from llmtune.inference.engine import Engine
from llmtune.inference.generation import Generation
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.planning.kv import MOST_ROWS, UNKNOWN, kv_bytes, rows_that_fit
from llmtune.types import Conversation, Message

ROWS = [
    Conversation((Message("user", "How much is " + "1 plus " * (number % 5) + f"{number}?"),)) for number in range(11)
]
SAMPLED = Sampling(max_new_tokens=12, do_sample=True, temperature=1.5, top_k=50, top_p=0.9)


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(3)
    found = load_engine(InferArguments(model_type="llmtune-tiny", eval_human=True))
    with torch.no_grad():  # far apart logits, so that rounding decides nothing
        found.model.get_output_embeddings().weight.mul_(4)
    return found


def alone(engine: Engine, sampling: Sampling) -> list[str]:
    """Each row by `generate`, apart."""
    found = []
    for row in ROWS:
        one = Generation(engine.template.prompts([row])[0], sampling, engine.template)
        engine.advance([one])
        found.append(one.text)
    return found


@pytest.mark.parametrize("max_rows", [1, 2, 3, 50, None])
def test_greedy_responses_equal_those_of_generate(engine, max_rows):
    sampling = Sampling(max_new_tokens=12)
    assert list(engine.answer(ROWS, sampling, batch_size=max_rows)) == alone(engine, sampling)


@pytest.mark.parametrize(
    "settings",
    [{"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}, {"stop": (" low",)}, {"frequency_penalty": 0.5}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_equal_those_of_generate(engine, settings):
    sampling = Sampling(max_new_tokens=12, **settings)
    assert list(engine.answer(ROWS, sampling, batch_size=4)) == alone(engine, sampling)
    assert alone(engine, sampling) != alone(engine, Sampling(max_new_tokens=12)), "the setting changes something"


def test_samples_depend_on_their_seeds_alone(engine):
    def sampled(max_rows: int, **options: Any) -> list[str]:
        torch.manual_seed(5)
        return list(engine.answer(ROWS, SAMPLED, batch_size=max_rows, **options))

    found = sampled(1)
    assert sampled(4) == sampled(11) == found
    assert len(set(found)) > 1
    seeds = list(range(100, 100 + len(ROWS)))
    seeded = sampled(3, seeds=seeds)
    assert seeded != found
    assert list(engine.answer(ROWS[4:6], SAMPLED, batch_size=2, seeds=seeds[4:6])) == seeded[4:6]


def test_each_row_has_its_own_limit_and_comes_in_order(engine):
    limits = [30, 1, 7, 2, 19, 3]
    prompts = engine.template.prompts(ROWS[: len(limits)])
    rows = [
        Generation(
            prompt,
            Sampling(max_new_tokens=limit, logit_bias=((engine.tokenizer.eos_token_id, -99.0),)),
            engine.template,
        )
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    found = generations(engine, rows, max_rows=2)
    assert next(found) is rows[0]
    assert sum(row.finish_reason is not None for row in rows) > 3, (
        "short ones came and went while the first was written"
    )
    assert list(found) == rows[1:]
    assert all(len(row.ids) <= limit for row, limit in zip(rows, limits, strict=True))


def test_the_caller_finds_the_model_as_it_was(engine):
    engine.model.train()
    for _ in engine.answer(ROWS[:3], Sampling(max_new_tokens=3), batch_size=2):
        assert engine.model.training
        assert not torch.is_inference_mode_enabled()
        assert not engine.busy.locked()
    engine.model.eval()


def test_out_of_memory_halves_the_rows_and_loses_none(engine, monkeypatch, capfd):
    own = answering.RefillBatch
    counts: list[int] = []

    class Small(own):  # type: ignore[misc, valid-type]
        def step(self) -> int | None:
            counts.append(self._max_rows)
            if self._max_rows > 2 and len(counts) % 3 == 0:
                raise torch.OutOfMemoryError("no")
            return super().step()

    sampling = Sampling(max_new_tokens=12)
    expected = alone(engine, sampling)
    monkeypatch.setattr(answering, "RefillBatch", Small)
    assert list(engine.answer(ROWS, sampling, batch_size=8)) == expected
    assert counts[-1] == 2
    assert "Out of memory: continuing with 4 rows at a time." in capfd.readouterr().err
    gc.collect()


def test_rows_that_cannot_be_moved_are_generated_in_batches(engine, monkeypatch):
    sampling = Sampling(max_new_tokens=12)
    monkeypatch.setattr(engine, "moves_rows", False)
    monkeypatch.setattr(answering, "_refilled", None)
    assert list(engine.answer(ROWS, sampling, batch_size=4)) == alone(engine, sampling)


def test_rows_are_chosen_from_memory(engine, monkeypatch):
    config = engine.model.config
    by_row = 1000 * kv_bytes(config, torch.float32) + 16 * config.vocab_size
    for fits in (0.5, 1.5, 7.2, 5000):
        free = SimpleNamespace(free_memory=lambda fits=fits: fits * by_row * 4)
        monkeypatch.setattr("llmtune.planning.kv.accelerator", lambda free=free: free)
        assert rows_that_fit(engine.model, 1000) == min(max(int(fits), 1), MOST_ROWS["cpu"])
    other = SimpleNamespace(device=engine.model.device, dtype=torch.float32, config=SimpleNamespace())
    other.config.get_text_config = lambda: SimpleNamespace(vocab_size=5)
    assert rows_that_fit(other, 10) == UNKNOWN
