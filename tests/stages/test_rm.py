"""Reward models: the score of a response is the same wherever it is computed, and plain transformers loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from llmtune import RmArguments, rm
from llmtune.errors import CheckpointError, ModelError, UsageError
from llmtune.models.packed_attention import VARLEN, register_varlen
from llmtune.models.score import choose_padding, install_scores, load_reward_model, score_options
from llmtune.models.tiny import tiny_folder
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.comparisons import COMPARISONS, ComparisonCollator, stored_comparison
from llmtune.templates.comparisons import EncodedComparison, EncodedResponse
from llmtune.training.reward import response_scores
from llmtune.training.reward_check import check_equal, padded

from ..models.test_shared_prompts import SMALL

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-pairs#24"], "val_dataset_sample": 6, "batch_size": 2,
    "gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
    "learning_rate": 1e-3, "save_total_limit": -1, "only_save_model": False, "report_to": ["none"],
}  # fmt: skip


def run(folder: Path, **options: Any) -> Any:
    return rm(RmArguments(**(RUN | {"output_dir": str(folder)} | options)))


def records(folder: Path, name: str = "loss") -> dict[int, float]:
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return {line["global_step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("lora"))


# One score, in many places


KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {}, "qwen3": {"head_dim": 8}, "llama": {}, "mistral": {"sliding_window": 6}, "phi3": {},
    "gemma2": {"head_dim": 8},
}  # fmt: skip
PAD, STOP = 0, 5


def encoded() -> list[EncodedComparison]:
    generator = torch.Generator().manual_seed(3)

    def ids(size: int) -> list[int]:
        return torch.randint(6, 64, (size,), generator=generator).tolist()

    rows = []
    for prompt, sizes in ((7, (3, 9)), (4, (6, 2))):
        responses = tuple(
            EncodedResponse(one, one, rank) for rank, one in enumerate([*ids(size), STOP] for size in sizes)
        )
        rows.append(EncodedComparison(ids(prompt), responses))
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_has_one_score_alone_padded_packed_and_behind_a_shared_prompt(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | KINDS[kind] | {"num_labels": 1, "pad_token_id": PAD}))
    attention = {"attn_implementation": "eager"} if kind == "gemma2" else {}
    model = AutoModelForSequenceClassification.from_config(config, **attention).eval()
    rows = encoded()
    sequences = [row.prompt + one.input_ids for row in rows for one in row.responses]
    with torch.no_grad():
        alone = torch.stack([model(input_ids=torch.tensor([one])).logits[0, 0] for one in sequences])
        right = model(**padded(sequences, PAD, "cpu")).logits[:, 0]
        turned = {name: value.flip(1) for name, value in padded([one[::-1] for one in sequences], PAD, "cpu").items()}
        left = model(**turned).logits[:, 0]  # transformers finds the rightmost token that is not padding
        torch.testing.assert_close(right, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(left, alone, rtol=1e-5, atol=1e-6)
        install_scores(model)
        items = [{COMPARISONS: [stored_comparison(row)]} for row in rows]
        found = {"padded": response_scores(model, ComparisonCollator(PaddingCollator(PAD))(items))}
        found["rows"] = response_scores(model, ComparisonCollator(PackingCollator(PAD, flat=True))(items))
        if kind != "gemma2":  # caps its attention, which the kernel lacks
            register_varlen()
            model.set_attn_implementation(VARLEN)
            shared = ComparisonCollator(PackingCollator(PAD, flat=True), shares_prompt=True)
            found["shared"] = response_scores(model, shared(items))
    for way, scores in found.items():
        torch.testing.assert_close(scores, alone.float(), rtol=1e-5, atol=1e-6, msg=lambda text, way=way: way + text)


def test_padding_is_never_what_ends_a_response():
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    stop, own = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.pad_token_id
    assert choose_padding(tokenizer, {stop}) == own
    tokenizer.pad_token = "<|im_end|>"
    found = choose_padding(tokenizer, {stop})
    assert found != stop
    assert tokenizer.pad_token_id == found
    with pytest.raises(ModelError, match=r"--new_special_tokens '<pad>'"):
        choose_padding(tokenizer, set(range(len(tokenizer))))


def test_a_family_without_a_class_for_scores_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cohere2", "architectures": ["X"]}))
    with pytest.raises(ModelError, match="no class with a score for cohere2"):
        score_options(tmp_path)


# Runs


@pytest.mark.medium
@pytest.mark.parametrize(
    "options", [{}, {"sft_type": "full"}, {"lora_target_modules": ["ALL"]}, {"sft_type": "ia3"}], ids=str
)
def test_a_checkpoint_loads_in_plain_transformers_with_the_scores_of_training(options, tmp_path, capsys):
    made = run(tmp_path, **options)
    folder = Path(made.last_checkpoint)
    assert "was loaded by transformers alone: the same scores" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text())["architectures"][0].endswith("ForSequenceClassification")
    model = load_reward_model(folder)
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is 1 plus 1?"}, {"role": "assistant", "content": text}], tokenize=False
        ).removesuffix("\n")
        for text in ("1 plus 1 is 2.", "Who cares?")
    ]
    with torch.no_grad():
        scores = model(**tokenizer(rows, padding=True, return_tensors="pt")).logits[:, 0]
    assert torch.isfinite(scores).all()
    if isinstance(model, PeftModel):
        merged = model.merge_and_unload()
        with torch.no_grad():
            after = merged(**tokenizer(rows, padding=True, return_tensors="pt")).logits[:, 0]
        torch.testing.assert_close(after, scores, rtol=1e-5, atol=1e-5)


def test_other_scores_in_the_files_stop_the_run(tmp_path):
    one = torch.tensor([1.0, -2.0])
    check_equal(one, one + 1e-4, tmp_path, 1e-3)
    with pytest.raises(CheckpointError, match="gives other scores"):
        check_equal(one, one.flip(0), tmp_path, 1e-3)


@pytest.mark.medium
def test_a_step_is_the_same_however_it_is_cut(lora, tmp_path):
    for number, options in enumerate(
        (
            {"batch_size": 1, "gradient_accumulation_steps": 4},
            {"batch_size": 4, "gradient_accumulation_steps": 1, "share_prompt": "false"},
            {"share_prompt": "false", "padding_free": True},
        )
    ):
        other = run(tmp_path / str(number), **options)
        for name in ("loss", "eval_loss", "eval_rewards/margins"):
            ours, theirs = records(lora.output_dir, name), records(other.output_dir, name)
            assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6), (options, name)


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [{}, {"sft_type": "full"}, {"packing": True, "max_length": 64}, {"quantization_bit": 4}, {"streaming": True}],
    ids=["lora", "full", "packed", "qlora", "streaming"],
)
def test_a_resumed_run_equals_the_whole_one(options, tmp_path):
    pytest.importorskip("bitsandbytes")
    whole = run(tmp_path, **options)
    before = records(whole.output_dir)
    rm(RmArguments(resume_from_checkpoint=str(whole.output_dir / "checkpoint-2")))
    assert records(whole.output_dir) == before


@pytest.mark.medium
def test_pairs_never_seen_are_told_apart(tmp_path):
    made = run(
        tmp_path, dataset=["tiny-pairs"], max_steps=40, eval_steps=40, batch_size=8, gradient_accumulation_steps=1,
        learning_rate=2e-3, val_dataset_sample=-1,
    )  # fmt: skip
    assert made.metrics["eval_rewards/accuracies"] > 0.95
    for name in ("eval_rewards/accuracies_chosen_longer", "eval_rewards/accuracies_chosen_not_longer"):
        assert made.metrics[name] > 0.8, name


@pytest.mark.medium
def test_margins_of_the_data_are_asked_for_and_centring_holds_scores_around_zero(tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "yes, gladly", "rejected": "no", "margin": 3.0} for n in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    more = {"dataset": [str(file)], "dataset_test_ratio": 0, "max_steps": 1}
    first = {
        name: records(run(tmp_path / name, **more, **options).output_dir)[1]
        for name, options in (("with", {}), ("without", {"use_margin": False}), ("centred", {"centring": 1.0}))
    }
    assert first["with"] > first["without"] + 1.0
    assert first["centred"] > first["with"]


def test_a_reward_model_writes_no_text():
    with pytest.raises(UsageError, match="a reward model writes no text"):
        RmArguments(**(RUN | {"predict_with_generate": True}))


@pytest.mark.medium
def test_a_reward_model_goes_on_from_an_adapter_of_its_kind(lora, tmp_path):
    made = run(tmp_path, peft_path=str(lora.last_checkpoint), max_steps=1)
    assert records(made.output_dir, "rewards/margins")[1] > records(lora.output_dir, "rewards/margins")[1]
