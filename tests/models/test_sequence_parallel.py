"""Sequence parallelism, class by class: threads stand for the processes that share a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtune.models import sequence_parallel
from llmtune.models.packed_attention import branches, takes_one_sequence
from llmtune.models.sequence_parallel import (
    GROUP,
    SequenceGroup,
    key_repeats,
    share_attention,
    why_not_shared_out,
)
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.samples.collate import PackingCollator

from ..samples.test_packing import TESTED, samples, small
from ..training.test_padding import settled


class Together:
    """The collectives of torch.distributed among threads: each gives its tensor, and waits for those of the others."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: dict[int, Tensor] = {}
        self._own = threading.local()

    def run(self, work: Callable[[SequenceGroup], Any]) -> list[Any]:
        """The results of all places; one that fails takes the others with it."""

        def at(place: int) -> Any:
            self._own.place = place
            try:
                return work(SequenceGroup(self.size, place, "threads"))
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as threads:
            return [one.result() for one in [threads.submit(at, place) for place in range(self.size)]]

    def _all(self, own: Tensor) -> list[Tensor]:
        self._given[self._own.place] = own.clone()
        self._barrier.wait()
        found = [self._given[place] for place in range(self.size)]
        self._barrier.wait()
        return found

    def all_reduce(self, value: Tensor, group: str) -> None:
        value.copy_(torch.stack(self._all(value)).sum(0))

    def all_to_all_single(self, found: Tensor, parts: Tensor, group: str) -> None:
        assert parts.is_contiguous()
        assert len(parts) == self.size
        found.copy_(torch.stack([other[self._own.place] for other in self._all(parts)]))


@pytest.fixture(params=[2, 4])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    made = Together(request.param)
    monkeypatch.setattr(
        sequence_parallel,
        "dist",
        SimpleNamespace(**{name: getattr(made, name) for name in ("all_reduce", "all_to_all_single")}),
    )
    return made


def gradients_of(model: Any) -> Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def shared(architecture: str) -> Any:
    """A small model with the attention that a run would choose, and the supervised loss."""
    model = small(architecture).train()
    settled(model)
    share_attention(model.config._attn_implementation)
    install_supervised_loss(model)
    return model


@pytest.mark.parametrize("architecture", TESTED)
def test_every_class_learns_the_same_or_is_refused(architecture, together):
    model = shared(architecture)
    copies = [model, *(shared(architecture) for _ in range(together.size - 1))]
    refused = together.run(lambda group: why_not_shared_out(copies[group.place], group))
    assert len(set(refused)) == 1, "all processes stop, or none"
    if refused[0]:
        assert "its attention (" in refused[0] or "cannot be divided among" in refused[0], refused[0]
        assert not takes_one_sequence(model) or model.config.get_text_config().num_attention_heads % together.size
        return
    batch = PackingCollator(0, flat=True, with_segments=True)(samples(9, 5, 13, 7, 3))
    assert batch["input_ids"].shape[1] % together.size, "a part has to be filled up"
    model.zero_grad()
    expected = model(**batch)
    expected.loss.backward()
    gradients = gradients_of(model)
    model.zero_grad()

    def learn(group: SequenceGroup) -> Any:
        own = copies[group.place]
        setattr(own, GROUP, group)
        found = own(**batch)
        found.loss.backward()
        return found.loss.detach(), gradients_of(own)

    found = together.run(learn)
    for loss, _ in found:
        assert float(loss) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    mean = torch.stack([own for _, own in found]).mean(0)  # as the model's wrapper takes it
    assert (mean - gradients).abs().max() < 1e-5 * gradients.abs().max()


def test_few_classes_are_refused(together):
    """Those that keep their padding too, and those whose heads cannot be divided."""

    def reason(architecture: str) -> str:
        models = [shared(architecture) for _ in range(together.size)]
        return together.run(lambda group: why_not_shared_out(models[group.place], group))[0]

    found = {one for one in TESTED if "its attention (" in reason(one)}
    assert found == {"BloomForCausalLM", "GptOssForCausalLM", "LlamaAlibiForCausalLM", "Gemma2ForCausalLM"}


def test_each_process_keeps_its_part_of_the_tokens_alone(together):
    batch = PackingCollator(0, flat=True, with_segments=True)(samples(9, 5, 13, 7))

    def widths(group: SequenceGroup) -> set[int]:
        own = shared("Qwen2ForCausalLM")
        setattr(own, GROUP, group)
        found: set[int] = set()
        for layer in own.model.layers:
            layer.mlp.register_forward_hook(lambda module, inputs, output: found.add(output.shape[1]))
        own(**batch)
        return found

    assert together.run(widths) == [{-(-34 // together.size)}] * together.size


def test_log_probabilities_of_responses_that_share_a_prompt(together):
    """Each response reads the keys of the prompt, wherever the parts end."""
    sizes = (6, 4, 5)
    ids = torch.arange(3, 3 + sum(sizes))[None]
    positions = torch.cat([torch.arange(6), 6 + torch.arange(4), 6 + torch.arange(5)])[None]
    batch = {"input_ids": ids, "position_ids": positions, **branches([(6, 0), (4, 6), (5, 6)])}
    labels = ids.clone()
    labels[0, [0, 1, 2, 3, 4, 5, 6, 10]] = -100
    models = [shared("Qwen2ForCausalLM") for _ in range(together.size)]
    expected = models[0](**batch, labels=labels, token_logps=True, token_entropies=True)
    weights = torch.randn(len(expected.token_logps))
    (expected.token_logps @ weights).backward()
    gradients = gradients_of(models[0])
    models[0].zero_grad()

    def learn(group: SequenceGroup) -> Any:
        own = models[group.place]
        setattr(own, GROUP, group)
        found = own(**batch, labels=labels, token_logps=True, token_entropies=True)
        (found.token_logps @ weights).backward()
        return found.token_logps.detach(), found.entropies, gradients_of(own)

    found = together.run(learn)
    for logps, entropies, _ in found:
        torch.testing.assert_close(logps, expected.token_logps.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(entropies, expected.entropies, rtol=1e-6, atol=1e-6)
    mean = torch.stack([one[2] for one in found]).mean(0)
    assert (mean - gradients).abs().max() < 1e-5 * gradients.abs().max()


def test_weighted_tokens_and_what_an_evaluation_counts(together):
    rows = samples(9, 5, 13, 8)
    for row in rows:
        row["loss_weights"] = [0.25 + place % 3 for place in range(len(row["input_ids"]))]
    batch = PackingCollator(0, flat=True, with_segments=True)(rows)
    models = [shared("LlamaForCausalLM").eval() for _ in range(together.size)]
    with torch.no_grad():
        expected = models[0](**batch)

    def evaluate(group: SequenceGroup) -> Any:
        setattr(models[group.place], GROUP, group)
        with torch.no_grad():
            return models[group.place](**batch)

    for found in together.run(evaluate):
        for name in ("loss", "num_correct", "num_trainable", "total_weight"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "repeats"), [(8, 8, 4, 1), (8, 4, 2, 1), (8, 2, 4, 2), (28, 4, 2, 1), (14, 2, 2, 1)]
)
def test_heads_are_divided(heads, key_heads, size, repeats):
    assert key_repeats(heads, key_heads, size) == repeats


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "advice"),
    [
        (14, 2, 4, "2 or 7 or 14 could"),
        (28, 4, 8, "2 or 4 or 7 or 14 or 28 could"),
        (3, 1, 2, "3 could"),
        (12, 3, 8, "2 or 3 or 4 or 6 or 12 could"),
    ],
)
def test_heads_that_cannot_be_divided(heads, key_heads, size, advice):
    with pytest.raises(ValueError, match=rf"{heads} attention heads, with {key_heads} of keys.*{advice}"):
        key_repeats(heads, key_heads, size)
