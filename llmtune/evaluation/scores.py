"""Scores of a model on rows: generations by the registry's metrics, loss, and the likelihood of choices.

Work is done in batches of similar length, each journaled when done.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llmtune.data.canonical import to_record
from llmtune.errors import LlmtuneError
from llmtune.evaluation.choices import ChoiceQuestion
from llmtune.evaluation.padding import batches_without_padding
from llmtune.evaluation.results import Journal
from llmtune.inference.decode_forward import pad_left
from llmtune.inference.engine import Engine
from llmtune.inference.infer import result_of
from llmtune.inference.sampling import Sampling
from llmtune.metrics import METRIC_MAPPING
from llmtune.models.supervised_loss import install_supervised_loss
from llmtune.registry import resolve_reference
from llmtune.samples.store import TokenStore, encode_dataset
from llmtune.types import Conversation, Message
from llmtune.utils.accelerator import to_float64
from llmtune.utils.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset


def answer_scores(
    metrics: Sequence[str], predictions: Sequence[str], references: Sequence[str], rows: Sequence[Conversation]
) -> dict[str, float]:
    """Return the scores of the chosen metrics, in their order.

    Raises:
        LlmtuneError: A metric raises, or does not return numbers by name.
    """
    made: dict[object, dict[str, float]] = {}
    found: dict[str, float] = {}
    for key in metrics:
        info = METRIC_MAPPING[key]
        if info.kind != "answers":
            continue
        assert info.function is not None
        if info.function not in made:
            function = resolve_reference(info.function, what=f"The function of the metric {key!r}")
            try:
                made[info.function] = _checked(key, function(predictions, references, rows))
            except LlmtuneError:
                raise
            except Exception as err:
                raise LlmtuneError(f"The metric {key!r} raises {type(err).__name__}: {err}") from err
        scores = made[info.function]
        for name in info.names or scores:
            if name in found and found[name] != scores[name]:
                raise LlmtuneError(
                    f"The metric {key!r} returns {name!r}, which another metric returns already: rename it."
                )
            found[name] = scores[name]
    return found


def _checked(key: str, scores: object) -> dict[str, float]:
    if not isinstance(scores, dict) or not all(isinstance(name, str) for name in scores):
        raise LlmtuneError(f"The metric {key!r} must return a dict of numbers by name, not {scores!r}.")
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise LlmtuneError(f"The metric {key!r} returns {value!r} for {name!r}, which is not a number.")
    return {name: float(value) for name, value in scores.items()}


# Loss on trainable tokens, computed like the evaluations in training: the same tokens, forward and mean


def loss_scores(engine: Engine, rows: Sequence[Conversation], journal: Journal, batch_size: int) -> dict[str, float]:
    """Return `loss` (nats per token), `perplexity`, `token_acc` (a fraction, as in training); {} without responses."""
    answered = [row for row in rows if row.turns and row.turns[-1].role == "assistant"]
    if not answered:
        return {}
    tokens = encode_dataset(_dataset(answered), engine.template, name="evaluation", required=False)
    if not len(tokens):
        return {}
    _measure(engine, tokens, journal, batch_size)
    records = journal.finish()
    trainable = sum(record["num_trainable"] for record in records)
    loss = sum(record["loss"] for record in records) / (sum(record["weight"] for record in records) or 1)
    correct = sum(record["num_correct"] for record in records) / max(trainable, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "token_acc": correct}


def _measure(engine: Engine, tokens: TokenStore, journal: Journal, batch_size: int) -> None:
    model = engine.model
    install_supervised_loss(model)
    model.eval()
    with batches_without_padding(engine, int(tokens.lengths.max())) as collate:
        for number, indices in enumerate(batches(tokens.lengths.tolist(), batch_size, "Loss")):
            if number not in journal.records:
                journal.add([{"index": number, **_losses(model, collate([tokens[index] for index in indices]))}])


def _losses(model: Any, batch: dict[str, Any]) -> dict[str, float]:
    with torch.inference_mode():
        found = model(**{name: _moved(value, model) for name, value in batch.items()})
    weight = float(found.total_weight)
    return {
        "loss": float(found.loss) * weight,
        "weight": weight,
        "num_trainable": int(found.num_trainable),
        "num_correct": int(found.num_correct),
    }


def _moved(value: Any, model: Any) -> Any:
    if not isinstance(value, torch.Tensor):  # the length of the longest sequence, for kernels
        return value
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value


def _dataset(rows: Sequence[Conversation]) -> Dataset:
    import datasets
    import pyarrow as pa

    from llmtune.data.canonical import SCHEMA

    return datasets.Dataset(pa.Table.from_pylist([to_record(row) for row in rows], schema=SCHEMA))


# Generations, and the choices of the model


def answer_rows(
    engine: Engine,
    rows: Sequence[Conversation],
    sampling: Sampling,
    journal: Journal,
    batch_size: int | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the generations for the rows, in their order; those with the longest prompts are generated first."""
    lengths = [len(ids) for ids in engine.template.encode_prompts(rows)]
    order = sorted((index for index in range(len(rows)) if index not in journal.records), key=lambda at: -lengths[at])
    # a seed per row: a resumed evaluation samples like an uninterrupted one, whatever shares its batches
    seeds = [(seed % 2**30 << 32) + index for index in order]
    answers = engine.answer([rows[index] for index in order], sampling, batch_size=batch_size, seeds=seeds)
    bar = progress_bar(order, desc="Answering", leave=False)
    for index, answer in zip(bar, answers, strict=True):
        journal.add([{"index": index, **result_of(rows[index], answer, engine.template)}])
    return journal.finish()


ROWS = 8
"""Rows per forward pass, unless a flag says otherwise."""


def batches(lengths: Sequence[int], batch_size: int, name: str, *, quiet: bool = False) -> Iterator[list[int]]:
    """Return indices in batches, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    starts = range(0, len(order), batch_size)
    bar = progress_bar(starts, desc=name, leave=False, quiet=quiet)
    yield from (order[start : start + batch_size] for start in bar)


def choice_scores(
    engine: Engine, questions: Sequence[ChoiceQuestion], journal: Journal, batch_size: int, style: str
) -> dict[str, float]:
    """Return the percentage of questions whose right choice is the most likely one.

    `accuracy` compares sums of log-likelihoods, `accuracy_norm` these sums divided by the length of the choice in
    characters, so that long choices are not at a disadvantage; both as in the lm-eval harness.
    """
    prompts = engine.template.encode_prompts([question.prompt(style) for question in questions])
    for batch in batches([len(prompt) for prompt in prompts], batch_size, "Choices"):
        if all(index in journal.records for index in batch):
            continue
        pairs = [
            (prompts[index], continuation(engine, questions[index].prompt(style), prompts[index], text))
            for index in batch
            for text in questions[index].texts(style)
        ]
        parts = (pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size))
        found = (one for part in parts for one in likelihoods(engine.model, part, engine.tokenizer.pad_token_id))
        journal.add(_choice_record(index, questions[index], style, found) for index in batch)
    records = journal.finish()
    return {
        name: 100 * sum(record[key] == record["answer"] for record in records) / len(records)
        for name, key in (("accuracy", "chosen"), ("accuracy_norm", "chosen_norm"))
    }


def _choice_record(index: int, question: ChoiceQuestion, style: str, found: Iterator[Likelihood]) -> dict[str, Any]:
    sums = [next(found).logprob for _ in question.choices]
    normal = [value / max(len(text), 1) for value, text in zip(sums, question.texts(style), strict=True)]
    return {
        "index": index,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
        "chosen": sums.index(max(sums)),
        "chosen_norm": normal.index(max(normal)),
        "logprobs": sums,
    }


def continuation(engine: Engine, prompt: Conversation, prompt_ids: Sequence[int], text: str) -> list[int]:
    """Return the ids of a response after this prompt, without the stop token."""
    whole = replace(prompt, messages=(*prompt.messages, Message("assistant", text, loss=True)))
    ids = list(engine.template.encode(whole)["input_ids"])
    if ids[: len(prompt_ids)] != list(prompt_ids):  # truncated to max_length: the response is still at the end
        start = len(ids) - len(engine.tokenizer(text, add_special_tokens=False)["input_ids"]) - 1
        ids, prompt_ids = ids[start:], []
    found = ids[len(prompt_ids) :]
    stops = set(engine.template.stop_token_ids)
    end = next((place for place, token in enumerate(found) if token in stops), len(found))
    return found[:end]


# Log-likelihoods of given continuations of given prompts


Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt (at least one) and of a continuation."""


@dataclass(frozen=True)
class Likelihood:
    """Score of a continuation. `logprob`: sum of its log-likelihoods. `is_greedy`: whether greedy decoding gives it."""

    logprob: float
    is_greedy: bool


@torch.no_grad()
def likelihoods(model: Any, pairs: Sequence[Pair], pad_token_id: int) -> list[Likelihood]:
    """Score one batch. Logits are computed only for the longest continuation's positions, [B, C + 1, V]."""
    if not pairs:
        return []
    batch = pad_left([[*prompt, *continuation] for prompt, continuation in pairs], pad_token_id)
    longest = max(len(continuation) for _, continuation in pairs)
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        options["logits_to_keep"] = longest + 1
    logits = model(**batch, **options).logits[:, -(longest + 1) :].float()
    found = []
    for row, (_, continuation) in enumerate(pairs):
        size = len(continuation)
        if not size:
            found.append(Likelihood(0.0, True))
            continue
        targets = torch.tensor(list(continuation), device=logits.device)
        own = torch.log_softmax(logits[row, -size - 1 : -1], dim=-1)
        chosen = own.gather(1, targets[:, None])[:, 0]
        found.append(Likelihood(float(to_float64(chosen).sum()), bool((own.argmax(-1) == targets).all())))
    return found
