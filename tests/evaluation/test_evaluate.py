"""Checkpoints measured side by side: loss as in training, scores of answers, choice questions, benchmarks, resuming."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import EvaluateArguments, InferArguments, SftArguments, evaluate, register_metric, sft
from llmtune.cli.main import main
from llmtune.data.formats import to_conversation
from llmtune.errors import (
    CheckpointError,
    DataError,
    LlmtuneError,
    MissingPackageError,
    OutputError,
    RowError,
    UnknownKeyError,
    UsageError,
)
from llmtune.evaluation import padding
from llmtune.evaluation.choices import choice_question
from llmtune.evaluation.results import Journal
from llmtune.evaluation.scores import continuation, likelihoods, loss_scores
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine
from llmtune.metrics import MetricInfo

QUICK: dict[str, Any] = {"max_new_tokens": 6}
WORDS = ["red", "blue", "green", "seven", "apple", "river", "mountain", "teacher", "house", "question"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run with checkpoints 2 and 4, each evaluated while it was trained."""
    folder = tmp_path_factory.mktemp("run")
    found = sft(
        SftArguments(
            model_type="llmtune-tiny", dataset=["tiny-qa#64"], lora_target_modules=["ALL"], batch_size=8,
            gradient_accumulation_steps=1, max_steps=4, save_steps=2, eval_steps=2, learning_rate=1e-2,
            warmup_ratio=0, output_dir=str(folder), report_to=["none"], save_total_limit=3, val_dataset_sample=20,
        )
    )  # fmt: skip
    return Path(found.output_dir)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = random.Random(0)
    rows = []
    for number in range(16):
        choices = [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 4))) for _ in range(4)]
        rows.append({"question": f"Which words come number {number}?", "choices": choices, "answer": number % 4})
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.medium
def test_a_run_checkpoint_by_checkpoint(run, tmp_path, capsys):
    args = EvaluateArguments(
        ckpt_dir=[str(run)], all_checkpoints=True, with_base=True, output_dir=str(tmp_path / "eval"), **QUICK
    )
    scores = evaluate(args)
    assert list(scores) == ["base", "checkpoint-2", "checkpoint-4"]
    logged = {record["global_step"]: record for record in lines(run / "logging.jsonl") if "eval_loss" in record}
    for step in (2, 4):
        found = scores[f"checkpoint-{step}"]
        assert found["loss"] == pytest.approx(logged[step]["eval_loss"], abs=2e-5), "as the training measured it"
        assert found["token_acc"] == pytest.approx(logged[step]["eval_token_acc"], abs=1e-5)
        assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).exp().item(), rel=1e-4)
    assert scores["base"]["loss"] > scores["checkpoint-4"]["loss"]
    assert {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match"} <= set(scores["base"])
    folder = tmp_path / "eval"
    assert json.loads((folder / "summary.json").read_text()) == scores
    table = (folder / "summary.md").read_text()
    assert table in capsys.readouterr().out
    assert [row.split()[1] for row in table.splitlines()[2:]] == list(scores)
    assert (folder / "eval_loss.png").read_bytes().startswith(b"\x89PNG")
    predictions = lines(folder / "checkpoint-4" / "predictions.jsonl")
    assert [record["index"] for record in predictions] == list(range(20)), "in the order of the rows"
    assert set(predictions[0]) == {"index", "query", "response", "history", "system", "label"}


@pytest.mark.medium
def test_a_killed_evaluation_resumes(run, tmp_path, monkeypatch):
    options = {"ckpt_dir": [str(run / "checkpoint-4")], "do_sample": True, "eval_batch_size": 4} | QUICK
    whole = evaluate(EvaluateArguments(output_dir=str(tmp_path / "whole"), **options))
    again = EvaluateArguments(output_dir=str(tmp_path / "stopped"), **options)
    own, asked = Engine.answer, []

    def answer(self: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        for number, one in enumerate(own(self, rows, *args, **kwargs)):
            if number == 12:
                raise KeyboardInterrupt
            yield one

    monkeypatch.setattr(Engine, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        evaluate(again)
    file = tmp_path / "stopped/checkpoint-4/predictions.jsonl"
    kept = file.read_text(encoding="utf-8")
    assert kept.count("\n") == 12
    file.write_text(kept[:-30], encoding="utf-8")  # half a line: the disk was full, or the power gone
    losses = file.with_name("losses.jsonl")
    losses.write_text("".join(losses.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr(Engine, "answer", lambda self, rows, *a, **k: asked.extend(rows) or own(self, rows, *a, **k))
    assert evaluate(again) == whole
    assert len(asked) == 9, "the row of the half line, and the eight that had not ended"
    assert file.read_bytes() == (tmp_path / "whole/checkpoint-4/predictions.jsonl").read_bytes()
    asked.clear()
    assert evaluate(again) == whole
    assert not asked
    with pytest.raises(OutputError, match=r"other settings \(sampling\)"):
        evaluate(EvaluateArguments(output_dir=str(tmp_path / "stopped"), **(options | {"max_new_tokens": 5})))
    with pytest.raises(OutputError, match=r"other settings \(data\)"):
        evaluate(EvaluateArguments(output_dir=str(tmp_path / "stopped"), **options, num_samples=3))


def test_registered_metrics_are_computed(run, tmp_path, capsys):
    @register_metric("shortness", description="How short answers are.")
    def shortness(predictions: Any, references: Any, rows: Any) -> dict[str, float]:
        assert [row.turns[-1].content for row in rows] == references
        return {"shortness": -sum(map(len, predictions)) / len(predictions)}

    options = {"ckpt_dir": [str(run / "checkpoint-4")], "num_samples": 4} | QUICK
    found = evaluate(EvaluateArguments(output_dir=str(tmp_path / "a"), metrics=["shortness", "bleu"], **options))
    assert set(found["checkpoint-4"]) == {"shortness", "bleu-4"}
    assert not (tmp_path / "a/checkpoint-4/losses.jsonl").exists()
    assert main(["list", "metrics"]) == 0
    assert "How short answers are." in capsys.readouterr().out
    register_metric("broken", MetricInfo(function=lambda *_: {"x": "y"}))
    with pytest.raises(LlmtuneError, match="'broken' returns 'y' for 'x', which is not a number"):
        evaluate(EvaluateArguments(output_dir=str(tmp_path / "b"), metrics=["broken"], **options))
    with pytest.raises(UnknownKeyError, match="Did you mean 'rouge'"):
        EvaluateArguments(ckpt_dir=[str(run / "checkpoint-4")], metrics=["rogue"])


# Choice questions


@pytest.mark.parametrize(
    ("row", "choices", "answer"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "B"}, ("a", "b"), 1),
        ({"question": "q", "choices": ["x", "y"], "answer": 0}, ("x", "y"), 0),
        ({"query": "q", "options": ["yes", "no"], "label": "no"}, ("yes", "no"), 1),
        ({"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "(c)"}, ("1", "2", "3", "4"), 2),
        ({"question": "q", "choices": {"text": ["u", "v"], "label": ["A", "B"]}, "answer": "A"}, ("u", "v"), 0),
    ],
)
def test_every_format_of_choice_questions_is_read(row, choices, answer):
    found = choice_question(row)
    assert (found.choices, found.answer) == (choices, answer)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "none of the 2 choices"),
        ({"question": "q", "choices": ["a"], "answer": "A"}, "2 to 26 choices"),
        ({"question": "q", "A": "1", "B": "2", "D": "4", "answer": "A"}, "skip a letter"),
        ({"choices": ["a", "b"], "answer": "A"}, "needs its text"),
        ({"question": "q", "choices": ["a", "b"]}, "needs the right choice"),
    ],
)
def test_choice_questions_that_lack_something(row, said):
    with pytest.raises(RowError, match=said):
        choice_question(row)


def test_positions_begin_at_the_first_token_of_a_row():
    """A model that learned its positions reads a padded row as it reads it alone."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    pairs = [([1, 2, 3, 4, 5, 6, 7, 8], [9, 10]), ([11], [12, 13, 14]), ([15, 16, 17], [18])]
    together = likelihoods(model, pairs, 0)
    apart = [likelihoods(model, [pair], 0)[0] for pair in pairs]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in apart], abs=1e-4)


@pytest.mark.medium
def test_choices_are_scored_by_likelihood(run, questions, tmp_path):
    checkpoint = str(run / "checkpoint-4")
    options = {"ckpt_dir": [checkpoint], "val_dataset": [str(questions)]}
    found = evaluate(EvaluateArguments(output_dir=str(tmp_path / "text"), **options))["checkpoint-4"]
    assert set(found) == {"accuracy", "accuracy_norm"}, "there are no other rows"
    engine = load_engine(InferArguments(ckpt_dir=checkpoint, eval_human=True))
    right = {"accuracy": 0, "accuracy_norm": 0}
    for row, record in zip(lines(questions), lines(tmp_path / "text/checkpoint-4/choices.jsonl"), strict=True):
        sums = []
        for choice in row["choices"]:
            prompt = engine.template.encode_prompts([{"query": row["question"], "response": ""}])[0]
            text = engine.template.render({"query": row["question"]}, generation=True) + choice
            ids = engine.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            logprobs = engine.model(ids).logits[0].log_softmax(-1)
            places = range(len(prompt), ids.shape[1])
            sums.append(sum(float(logprobs[place - 1, ids[0, place]]) for place in places))
        assert record["logprobs"] == pytest.approx(sums, abs=1e-3)
        by_length = [value / len(choice) for value, choice in zip(sums, row["choices"], strict=True)]
        right["accuracy"] += sums.index(max(sums)) == row["answer"]
        right["accuracy_norm"] += by_length.index(max(by_length)) == row["answer"]
    assert found == {name: pytest.approx(100 * count / 16) for name, count in right.items()}
    letters = evaluate(EvaluateArguments(output_dir=str(tmp_path / "letter"), choice_style="letter", **options))
    assert letters["checkpoint-4"]["accuracy"] == letters["checkpoint-4"]["accuracy_norm"], "letters are equally long"
    with pytest.raises(DataError, match="needs rows with choices"):
        evaluate(EvaluateArguments(ckpt_dir=[checkpoint], metrics=["choice"], output_dir=str(tmp_path / "x")))


def test_batches_and_padding_change_nothing(run):
    engine = load_engine(InferArguments(ckpt_dir=str(run / "checkpoint-4"), eval_human=True))
    prompts = engine.template.encode_prompts([{"query": text, "response": ""} for text in ("a", "much longer " * 9)])
    pairs = [(prompts[0], [5, 6, 7]), (prompts[1], [9]), (prompts[1], [])]
    together = likelihoods(engine.model, pairs, engine.tokenizer.pad_token_id)
    apart = [likelihoods(engine.model, [pair], engine.tokenizer.pad_token_id)[0] for pair in pairs]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in apart], abs=1e-4)
    assert together[2].logprob == 0
    prompt = choice_question({"question": "q", "choices": ["a", "b"], "answer": 0}).prompt("text")
    ids = engine.template.encode_prompts([prompt])[0]
    assert engine.tokenizer.decode(continuation(engine, prompt, ids, "yes, it is")) == "yes, it is"


def test_the_loss_is_that_of_padded_rows_without_their_padding(run, tmp_path, monkeypatch):
    engine = load_engine(InferArguments(ckpt_dir=str(run / "checkpoint-4"), eval_human=True))
    texts = ["short", "a little longer " * 4, "long " * 60]
    rows = [to_conversation({"query": text, "response": text}) for text in texts]
    before = engine.model.config._attn_implementation
    sizes: list[int] = []
    inner = padding.PackingCollator.__call__

    def noted(self: Any, samples: Any) -> dict[str, Any]:
        batch = inner(self, samples)
        sizes.append(batch["input_ids"].numel() - sum(len(sample["input_ids"]) for sample in samples))
        return batch

    monkeypatch.setattr(padding.PackingCollator, "__call__", noted)
    found = loss_scores(engine, rows, Journal(tmp_path / "flat.jsonl"), 8)
    assert sizes == [0]
    assert engine.model.config._attn_implementation == before
    monkeypatch.setattr(padding, "why_not_apart", lambda *_, **__: "its layers mix tokens")
    padded = loss_scores(engine, rows, Journal(tmp_path / "padded.jsonl"), 8)
    assert len(sizes) == 1
    assert engine.model.config._attn_implementation == before
    assert found == pytest.approx(padded, rel=1e-6)


# Benchmarks

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: {kind}
target_delimiter: ""
doc_to_text: "{{{{question}}}}"
{more}
"""
CHOICE = """
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WRITE = """
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
"""
TEXT = """
doc_to_target: "{{question}}"
metric_list:
  - metric: byte_perplexity
"""


@pytest.mark.slow
def test_the_harness_on_the_same_engine(run, questions, tmp_path):
    pytest.importorskip("lm_eval")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, kind, more in (
        ("own_choice", "multiple_choice", CHOICE),
        ("own_write", "generate_until", WRITE),
        ("own_text", "loglikelihood_rolling", TEXT),
    ):
        text = TASK.format(name=name, file=questions, kind=kind, more=more)
        (tasks / f"{name}.yaml").write_text(text.replace('"{{question}}"\n\n\ndoc', '"{{question}}"\ndoc'))
    checkpoint = str(run / "checkpoint-4")
    ours = evaluate(
        EvaluateArguments(ckpt_dir=[checkpoint], val_dataset=[str(questions)], output_dir=str(tmp_path / "ours"))
    )["checkpoint-4"]
    names = ["own_choice", "own_write", "own_text"]
    args = EvaluateArguments(
        ckpt_dir=[checkpoint], suite=names, suite_path=str(tasks), output_dir=str(tmp_path / "suite")
    )
    theirs = evaluate(args)["checkpoint-4"]
    assert 100 * theirs["own_choice/acc"] == pytest.approx(ours["accuracy"])
    assert 100 * theirs["own_choice/acc_norm"] == pytest.approx(ours["accuracy_norm"])
    assert theirs["own_text/byte_perplexity"] > 1
    assert "own_write/exact_match" in theirs
    written = json.loads((tmp_path / "suite/checkpoint-4/suite_samples.json").read_text())["own_write"]
    engine = load_engine(InferArguments(ckpt_dir=checkpoint, eval_human=True))
    from llmtune.inference.sampling import Sampling

    rows = [choice_question(row).prompt("text") for row in lines(questions)[:2]]
    answers = list(engine.answer(rows, Sampling(max_new_tokens=8)))
    assert [sample["resps"][0][0] for sample in written[:2]] == [answer.split("\n")[0] for answer in answers]
    with pytest.raises(UsageError, match="no such task"):
        evaluate(EvaluateArguments(ckpt_dir=[checkpoint], suite=["no_such_task"], output_dir=str(tmp_path / "x")))


def test_the_harness_is_an_extra(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'llmtune\[eval\]'"):
        evaluate(EvaluateArguments(ckpt_dir=[str(run / "checkpoint-4")], suite=["mmlu"], output_dir=str(tmp_path)))


# Flags


def test_contradicting_flags_are_refused_before_anything_is_written(run, capsys, tmp_path):
    flags = ["--ckpt_dir", str(run), "--all_checkpoints", "true", "--dry_run", "true"]
    assert main(["eval", *flags]) == 0
    shown = capsys.readouterr().out
    assert "checkpoint-2, checkpoint-4" in shown
    assert str(run / "eval") in shown
    assert not (run / "eval").exists()
    with pytest.raises(UsageError, match="remove --metrics"):
        EvaluateArguments(ckpt_dir=[str(run / "checkpoint-2")], suite=["mmlu"], metrics=["loss"])
    with pytest.raises(UsageError, match="needs --ckpt_dir RUN"):
        EvaluateArguments(model_type="llmtune-tiny", all_checkpoints=True)
    with pytest.raises(CheckpointError, match="no checkpoint-N"):
        EvaluateArguments(ckpt_dir=[str(tmp_path)], all_checkpoints=True)
    two = EvaluateArguments(ckpt_dir=[str(run / "checkpoint-2"), str(run / "checkpoint-2")])
    assert len(two.names()) == 2
    assert main(["eval", "--model_type", "llmtune-tiny", "--num_samples", "0"]) == 2
