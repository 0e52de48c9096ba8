"""Reward models outside of training: a response has one score, whichever command computes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtune import InferArguments, RmArguments, infer, rm
from llmtune.arguments.infer import LoadArguments
from llmtune.cli.dry_run import show_infer
from llmtune.data.canonical import comparison_of, to_comparison_record
from llmtune.data.comparisons import to_responses
from llmtune.errors import CheckpointError, DataError, ModelError, RowError, UsageError
from llmtune.inference.load import load_engine, load_scorer
from llmtune.models.heads import is_reward_model, output_head
from llmtune.models.score import load_reward_model
from llmtune.samples.collate import PaddingCollator
from llmtune.samples.comparisons import COMPARISONS, ComparisonCollator, stored_comparison
from llmtune.templates.comparisons import EncodedComparison
from llmtune.training.reward import response_scores
from llmtune.training.reward_check import padded
from llmtune.tuners.load import load_tuned

EXACT = 1e-5
"""Of scores in fp32 around 1, computed alone or in a padded batch: rounding."""
LONG = "Tell me more" + ", and more" * 20 + "."
ROWS: list[dict[str, Any]] = [
    {"query": "What is 1 plus 1?", "response": "1 plus 1 is 2."},
    {"prompt": "What is 1 plus 1?", "chosen": "1 plus 1 is 2.", "rejected": "No.", "margin": 2.0},
    {"messages": [{"role": "user", "content": LONG},
                  {"role": "assistant", "content": "There is more."}], "label": False},
    {"context": [{"role": "user", "content": "What is 2 plus 1?"}],
     "completions": [{"rank": 1, "completion": [{"role": "assistant", "content": "no"}]},
                     {"rank": 0, "completion": [{"role": "assistant", "content": "2 plus 1 is 3."}]},
                     {"rank": 1, "completion": [{"role": "assistant", "content": "nothing at all"}]}]},
    {"query": "Who are you?", "response": "I am a model.", "label": "a reference response"},
]  # fmt: skip


@pytest.fixture(scope="module", params=["lora", "full"])
def rewards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, _own_cache: None) -> Path:
    made = rm(
        RmArguments(
            model_type="llmtune-tiny", dataset=["tiny-pairs#24"], val_dataset_sample=6, batch_size=2,
            gradient_accumulation_steps=1, max_steps=6, learning_rate=2e-3, sft_type=request.param,
            output_dir=str(tmp_path_factory.mktemp(request.param)), report_to=["none"],
        )
    )  # fmt: skip
    assert made.last_checkpoint is not None
    return made.last_checkpoint


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "rows.jsonl"
    found.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return found


def scores_of(results: list[dict[str, Any]]) -> list[float]:
    return [one["score"] for result in results for one in result["responses"]]


# Checkpoints


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, EXACT), ({"dtype": "bf16"}, 0.1), ({"quantization_bit": 8}, 0.3), ({"quantization_bit": 4}, 0.6)],
    ids=str,
)
def test_a_reward_model_is_loaded_in_every_dtype_with_its_trained_head(rewards, options, tolerance):
    if "quantization_bit" in options:
        pytest.importorskip("bitsandbytes")
    plain = load_reward_model(rewards)
    model, tokenizer = load_tuned(LoadArguments(ckpt_dir=str(rewards), device="cpu", **options))
    assert is_reward_model(model)
    assert model.config.pad_token_id == tokenizer.pad_token_id == plain.config.pad_token_id
    head = output_head(model)
    trained = getattr(head, "modules_to_save", {"default": head})["default"].weight
    wanted = output_head(plain)
    wanted = getattr(wanted, "modules_to_save", {"default": wanted})["default"].weight
    torch.testing.assert_close(trained.float(), wanted.float(), rtol=1e-2, atol=1e-3)  # bf16, and never quantised
    inputs = padded([tokenizer("one plus one is two")["input_ids"]], tokenizer.pad_token_id, "cpu")
    with torch.no_grad():
        difference = (model(**inputs).logits.float() - plain(**inputs).logits).abs().max()
    assert difference < tolerance


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for one in folder.iterdir():
        if one.is_file():
            (target / one.name).write_bytes(one.read_bytes())
    return target


@pytest.mark.parametrize("rewards", ["full"], indirect=True)
def test_padding_is_that_of_the_tokenizer(rewards, tmp_path):
    folder = copy_of(rewards, tmp_path / "unpadded")
    config = json.loads((folder / "config.json").read_text())
    assert config["pad_token_id"] is not None
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    model, _ = load_tuned(LoadArguments(ckpt_dir=str(folder), device="cpu"))
    assert model.config.pad_token_id == config["pad_token_id"]


def test_a_folder_without_the_trained_head_is_refused(rewards, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(rewards, tmp_path / "headless")
    (weights,) = (one for one in folder.glob("*model.safetensors"))
    tensors = {name: value for name, value in load_file(weights).items() if "score" not in name}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises((CheckpointError, ModelError), match="score"):
        load_tuned(LoadArguments(ckpt_dir=str(folder), device="cpu"))


def test_a_reward_model_is_no_engine(rewards):
    with pytest.raises(UsageError, match="is a reward model: it scores responses, and generates none"):
        load_engine(LoadArguments(ckpt_dir=str(rewards)))


# Scores


def as_in_training(model: Any, encoded: list[EncodedComparison]) -> list[float]:
    batch = ComparisonCollator(PaddingCollator(model.config.pad_token_id))(
        [{COMPARISONS: [stored_comparison(row)]} for row in encoded]
    )
    with torch.no_grad():
        return [float(score) for score in response_scores(model, batch)]


@pytest.mark.medium
def test_a_score_is_that_of_training_alone_and_in_batches(rewards, tmp_path):
    scorer = load_scorer(LoadArguments(ckpt_dir=str(rewards)))
    encoded = scorer.encode([to_responses(row) for row in ROWS])
    stops = set(scorer.template.stop_token_ids)
    assert all(one.input_ids[-1] in stops for row in encoded for one in row.responses)
    wanted = as_in_training(scorer.model, encoded)
    assert max(wanted) - min(wanted) > 0.05  # they differ, so that their order shows
    for size in (1, 3, 16):
        found = [score for row in scorer.scores_of(encoded, size) for score in row]
        assert found == pytest.approx(wanted, abs=EXACT), size
    plain = load_reward_model(rewards)
    for row in encoded:
        for one in row.responses:
            with torch.no_grad():
                alone = plain(input_ids=torch.tensor([row.prompt + one.input_ids])).logits[0, 0]
            assert float(alone) == pytest.approx(wanted.pop(0), abs=EXACT)


@pytest.mark.medium
def test_infer_writes_the_scores_of_rows_of_any_kind(rewards, file, tmp_path, capsys):
    options = {"ckpt_dir": str(rewards), "dataset": [str(file)], "result_dir": str(tmp_path)}
    results = infer(InferArguments(**options))
    written = [json.loads(line) for line in next(tmp_path.glob("infer_result_*.jsonl")).read_text().splitlines()]
    assert written == results
    assert [result["query"] for result in results] == [
        "What is 1 plus 1?", "What is 1 plus 1?", LONG, "What is 2 plus 1?", "Who are you?",
    ]  # fmt: skip
    kept = [[{key: one[key] for key in one if key != "score"} for one in row["responses"]] for row in results]
    assert kept == [
        [{"response": "1 plus 1 is 2."}],
        [{"response": "1 plus 1 is 2.", "rank": 0}, {"response": "No.", "rank": 1}],
        [{"response": "There is more.", "label": False}],
        [{"response": "2 plus 1 is 3.", "rank": 0}, {"response": "no", "rank": 1},
         {"response": "nothing at all", "rank": 1}],
        [{"response": "I am a model."}],
    ]  # fmt: skip
    assert [row.get("margin") for row in results] == [None, 2.0, None, None, None]
    assert results[0]["responses"][0]["score"] == pytest.approx(results[1]["responses"][0]["score"], abs=EXACT)
    scorer = load_scorer(LoadArguments(ckpt_dir=str(rewards)))
    wanted = as_in_training(scorer.model, scorer.encode([to_responses(row) for row in ROWS]))
    assert scores_of(results) == pytest.approx(wanted, abs=EXACT)
    shown = capsys.readouterr()
    assert f"{results[1]['responses'][1]['score']:9.4f}  rank 1  No.\n" in shown.out
    pairs = [
        a["score"] - b["score"] for row in (results[1], results[3]) for a in row["responses"]
        for b in row["responses"] if a["rank"] < b["rank"]
    ]  # fmt: skip
    assert len(pairs) == 3
    metrics = json.loads(next(tmp_path.glob("infer_metrics_*.json")).read_text())
    assert metrics["accuracy"] == sum(pair > 0 for pair in pairs) / 3
    assert metrics["mean_margin"] == pytest.approx(sum(pairs) / 3)
    assert metrics["mean_score_bad"] == pytest.approx(results[2]["responses"][0]["score"])
    assert "accuracy" in shown.err


@pytest.mark.medium
def test_without_data_the_pairs_that_training_held_out_are_scored(rewards, tmp_path):
    results = infer(InferArguments(ckpt_dir=str(rewards), result_dir=str(tmp_path), infer_batch_size=4))
    assert len(results) == 6
    assert all([one["rank"] for one in row["responses"]] == [0, 1] for row in results)


@pytest.mark.medium
def test_flags_of_generation_are_named_and_a_chat_is_refused(rewards, file, tmp_path, capsys):
    options = {"ckpt_dir": str(rewards), "dataset": [str(file)], "result_dir": str(tmp_path)}
    infer(InferArguments(**options, temperature=0.3, stream=False, show_dataset_sample=1))
    err = capsys.readouterr().err
    for flag in ("--temperature", "--stream"):
        assert f"{flag} has no effect on the scores of a reward model." in err
    asked = InferArguments(ckpt_dir=str(rewards), eval_human=True)
    for command in (infer, show_infer):
        with pytest.raises(UsageError, match="is a reward model: it scores responses, and writes none"):
            command(asked)
    show_infer(InferArguments(**options))
    assert "one number per response" in capsys.readouterr().out


@pytest.mark.medium
def test_rows_that_are_too_long_are_counted(rewards, file, tmp_path, capsys):
    options = {"ckpt_dir": str(rewards), "dataset": [str(file)], "result_dir": str(tmp_path), "max_length": 64}
    assert len(infer(InferArguments(**options))) == 4
    assert "1 of 5 rows have no score; first: row 3: longer than 64 tokens" in capsys.readouterr().err
    with pytest.raises(DataError, match="row 3: longer than 64 tokens"):
        infer(InferArguments(**options, strict=True))


@pytest.mark.medium
@pytest.mark.parametrize("rewards", ["lora"], indirect=True)
def test_a_merged_adapter_scores_alike(rewards, file, tmp_path):
    options = {"ckpt_dir": str(rewards), "dataset": [str(file)], "result_dir": str(tmp_path)}
    before = scores_of(infer(InferArguments(**options)))
    after = scores_of(infer(InferArguments(**options, merge_lora_and_save=True)))
    assert after == pytest.approx(before, abs=EXACT)


# Rows


def test_a_conversation_becomes_its_last_response():
    made = to_responses({"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]})  # fmt: skip
    assert [message.content for message in made.prompt.messages] == ["s", "a", "b", "c"]
    assert [answer.messages[0].content for answer in made.answers] == ["d"]
    assert made.answers[0].label is None
    assert comparison_of(to_comparison_record(made)) == made


def test_a_conversation_without_a_response_has_nothing_to_score():
    with pytest.raises(RowError):
        to_responses({"messages": [{"role": "user", "content": "a"}]})
