"""Weights of messages in the loss: the sum of w * nll over the sum of w, of the whole optimizer step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from llmtune import SftArguments, sft
from llmtune.data.canonical import SCHEMA, to_record
from llmtune.models.chunked_loss import LogitMap, supervised_cross_entropy
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.models.tiny import tiny_folder
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.packing import PackedDataset
from llmtune.samples.store import encode_dataset
from llmtune.templates.lookup import get_template
from llmtune.types import IGNORE_INDEX, Conversation, Message

from ..launched import launch, records

WEIGHTS = (1.0, 0.25, 2.0)


def row(number: int) -> list[dict[str, Any]]:
    """One to three answers, with weights that differ within a row; the last row of three has plain ones."""
    turns: list[dict[str, Any]] = []
    for turn in range(1 + number % 3):
        weight = 1.0 if number % 3 == 0 else WEIGHTS[(number + turn) % 3]
        turns += [{"role": "user", "content": f"question {number} {turn}"},
                  {"role": "assistant", "content": f"answer {'and more ' * (number % 4)}{weight}",
                   "weight": weight}]  # fmt: skip
    return turns


def conversation(number: int, *, plain: bool = False) -> Conversation:
    return Conversation(tuple(
        Message(turn["role"], turn["content"], loss=turn["role"] == "assistant",
                weight=1.0 if plain or turn["role"] == "user" else float(turn["content"].split()[-1]))
        for turn in row(number)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return get_model_tokenizer("llmtune-tiny", load_model=False)[1]


def store(tokenizer: Any, *, plain: bool = False, template: str = "chatml") -> Any:
    rows = [to_record(conversation(number, plain=plain)) for number in range(9)]
    dataset = datasets.Dataset(pa.Table.from_pylist(rows, schema=SCHEMA))
    return encode_dataset(dataset, get_template(template, tokenizer, max_length=256))


def by_hand(model: Any, samples: list[dict[str, Any]]) -> torch.Tensor:
    """Row by row with torch's own cross entropy; weights from the text of each trained answer."""
    total, weight = torch.zeros(()), 0.0
    for sample in samples:
        ids, labels = torch.tensor(sample["input_ids"])[None], torch.tensor(sample["labels"])
        nll = functional.cross_entropy(model(input_ids=ids).logits[0, :-1], labels[1:].long(), reduction="none")
        weights = torch.tensor(sample.get("loss_weights", [1.0] * len(labels)))[1:]
        learned = labels[1:] != IGNORE_INDEX
        total, weight = total + (nll * weights)[learned].sum(), weight + float(weights[learned].sum())
    return total / weight


@pytest.mark.parametrize("template", ["chatml", "auto", "qwen3"])
def test_the_trained_tokens_of_an_answer_have_its_weight(template, tokenizer):
    """Of the content, its stop token and nothing else; kept by the cache, absent where all are 1."""
    own = tokenizer
    if template == "auto":
        import copy

        own = copy.deepcopy(tokenizer)
        own.chat_template = (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
    seen = 0
    for tokens in (store(own, template=template), store(own, template=template)):  # encoded, then from the cache
        for sample in tokens:
            if "loss_weights" not in sample:
                continue
            weights, labels = sample["loss_weights"], sample["labels"]
            starts = [i for i in range(1, len(labels)) if labels[i] != IGNORE_INDEX and labels[i - 1] == IGNORE_INDEX]
            for start in starts:
                end = next((i for i in range(start, len(labels)) if labels[i] == IGNORE_INDEX), len(labels))
                answer = own.decode(sample["input_ids"][start : end - 1])
                assert set(weights[start:end].tolist()) == {float(answer.split()[-1])}
                seen += 1
            assert set(weights[labels == IGNORE_INDEX].tolist()) == {1.0}
    assert seen >= 20
    assert tokens.report.num_weighted
    plain = store(own, plain=True, template=template)
    assert not plain.report.num_weighted
    assert not any("loss_weights" in sample for sample in plain)


@pytest.mark.medium
def test_equals_the_sum_by_hand(tokenizer):
    """Loss and gradients; padded, packed and flat alike."""
    tokens = store(tokenizer)
    samples = [tokens[index] for index in range(len(tokens))]
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    expected = by_hand(model, samples)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    plain = by_hand(model, [{key: one[key] for key in ("input_ids", "labels")} for one in samples])
    assert abs(plain - expected) > 1e-3, "the weights change the loss"
    install_supervised_loss(model)
    packs = PackedDataset(tokens, 256)
    batches = [
        PaddingCollator(0)(samples),
        PackingCollator(0)([packs[index] for index in range(len(packs))]),
        PackingCollator(0, flat=True)(samples),
    ]
    for batch in batches:
        model.zero_grad()
        found = model(**batch)
        found.loss.backward()
        torch.testing.assert_close(found.loss, expected, atol=2e-6, rtol=0)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=2e-6, rtol=1e-4)
        with torch.no_grad():
            evaluated = model(**batch)
        torch.testing.assert_close(evaluated.loss, expected, atol=2e-6, rtol=0)
        assert int(evaluated.num_trainable) == tokens.report.num_trainable


@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.5, 3.0)])
@pytest.mark.parametrize("linear", [True, False])
def test_weighted_loss_in_chunks_equals_the_plain_one(monkeypatch, logit_map, linear):
    monkeypatch.setattr("llmtune.models.chunked_loss.CHUNK_POSITIONS", 3)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 6, generator=draw, requires_grad=True)
    head = torch.nn.Linear(6, 11) if linear else torch.nn.Sequential(torch.nn.Linear(6, 11))
    targets, weights = torch.randint(11, (8,), generator=draw), torch.rand(8, generator=draw)
    expected = functional.cross_entropy(logit_map(head(hidden)), targets, reduction="none") @ weights
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    found, _ = supervised_cross_entropy(hidden, head, targets, logit_map, weights)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, [hidden, *head.parameters()]), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


# Whole runs

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "learning_rate": 1e-3, "max_steps": 3, "logging_steps": 1, "eval_strategy": "no",
    "dataset_test_ratio": 0, "batch_size": 1, "gradient_accumulation_steps": 12, "report_to": ["none"],
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row(n)}) + "\n" for n in range(12)))
    return {"dataset": [str(tmp_path / "rows.jsonl")]}


def losses(run: Path) -> list[float]:
    return list(records(run).values())


@pytest.mark.medium
def test_however_a_step_is_cut(files, tmp_path):
    """All the rows are one step: accumulated, batched, flat and streamed, it is the same loss, and goes down alike."""

    def run(name: str, **options: Any) -> list[float]:
        return losses(sft(SftArguments(**RUN | files | {"output_dir": str(tmp_path / name)} | options)).output_dir)

    found = run("1x12")
    assert len(found) == 3
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder()))
    assert found[0] == pytest.approx(first_loss(model), abs=1e-4)
    for name, options in {
        "12x1": {"batch_size": 12, "gradient_accumulation_steps": 1},
        "flat": {"batch_size": 4, "gradient_accumulation_steps": 3, "padding_free": True},
        "streamed": {"streaming": True, "batch_size": 3, "gradient_accumulation_steps": 4},
    }.items():
        assert run(name, **options) == pytest.approx(found, abs=2e-4), name


def first_loss(model: Any) -> float:
    _, tokenizer = get_model_tokenizer("llmtune-tiny", load_model=False)
    template = get_template("chatml", tokenizer)
    return float(by_hand(model, [one for n in range(12) for one in template.encode_all(conversation(n))]).detach())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"fsdp": True}, {"streaming": True}], ids=["ddp", "fsdp", "streamed"])
def test_two_processes_equal_one(files, tmp_path, options):
    settings = RUN | files | {"save_strategy": "no"}
    one = launch(tmp_path / "one", **settings | {name: value for name, value in options.items() if name != "fsdp"})
    two = launch(tmp_path / "two", **settings | options | {"nproc": 2, "gradient_accumulation_steps": 6})
    assert losses(two) == pytest.approx(losses(one), abs=2e-4)
