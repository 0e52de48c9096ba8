"""Whole runs of dpo: where they begin, what the reference is, what they learn, and how they go on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmtune import DpoArguments, KtoArguments, SftArguments, dpo, sft
from llmtune.checkpoint import last_checkpoint
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, DataError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.run.report import _preferences
from llmtune.training import reference as reference_module
from llmtune.utils.files import cache_root

RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "dataset": ["tiny-pairs#24"], "val_dataset_sample": 6, "batch_size": 2,
    "gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 1, "eval_steps": 2, "save_steps": 2,
    "learning_rate": 1e-3, "save_total_limit": -1, "only_save_model": False, "report_to": ["none"],
}  # fmt: skip


def run(folder: Path, **options: Any) -> Any:
    return dpo(DpoArguments(**(RUN | {"output_dir": str(folder)} | options)))


def records(folder: Path, name: str = "loss") -> dict[int, float]:
    lines = map(json.loads, (folder / "logging.jsonl").read_text().splitlines())
    return {line["global_step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("lora"))


def first(folder: Path, **options: Any) -> float:
    """The loss of the first step, before anything is learned."""
    return records(run(folder, max_steps=1, eval_strategy="no", **options).output_dir)[1]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("options", "expected", "tolerance"),
    [
        ({}, math.log(2), 1e-6),
        ({"share_prompt": "false"}, math.log(2), 1e-6),
        ({"padding_free": True, "share_prompt": "false"}, math.log(2), 1e-6),
        ({"packing": True, "max_length": 64}, math.log(2), 1e-6),
        ({"dtype": "bf16"}, math.log(2), 1e-3),
        ({"sft_type": "full"}, math.log(2), 1e-6),
        ({"lora_init": "pissa"}, math.log(2), 1e-5),
        ({"loss": ["hinge"]}, 1.0, 1e-6),
        ({"loss": ["ipo"], "beta": 0.2}, 1 / (4 * 0.2**2), 1e-4),
        ({"ld_alpha": 0.3}, math.log(2), 1e-6),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_the_first_loss_is_that_of_a_model_that_is_its_own_reference(options, expected, tolerance, tmp_path):
    assert first(tmp_path, **options) == pytest.approx(expected, abs=tolerance)


@pytest.mark.medium
def test_a_run_writes_margins_and_both_log_probabilities(lora):
    names = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "eval_rewards/margins")
    for name in names:
        assert records(lora.output_dir, name), name
    assert records(lora.output_dir)[1] == pytest.approx(math.log(2), abs=1e-6)
    assert records(lora.output_dir)[4] < records(lora.output_dir)[1]
    assert records(lora.output_dir, "rewards/margins")[1] == pytest.approx(0, abs=1e-4)
    assert records(lora.output_dir, "rewards/margins")[4] > 0
    assert lora.metrics["eval_rewards/accuracies"] <= 1


@pytest.mark.medium
def test_a_step_is_the_same_however_it_is_cut(lora, tmp_path):
    """1 x 4 = 2 x 2 = without a shared prompt = padding-free, loss for loss."""
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


# The reference


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT adapter that changes the model clearly."""
    folder = tmp_path_factory.mktemp("sft")
    args = {"dataset": ["tiny-qa#40"], "max_steps": 6, "learning_rate": 1e-2, "gradient_accumulation_steps": 1}
    made = sft(SftArguments(model_type="llmtune-tiny", output_dir=str(folder), report_to=["none"], **args))
    return Path(made.last_checkpoint)


@pytest.mark.medium
def test_the_reference_is_the_given_adapter_and_not_its_base(adapter, tmp_path):
    """Held to the base instead, the loss would not begin at log 2."""
    assert first(tmp_path / "a", peft_path=str(adapter)) == pytest.approx(math.log(2), abs=1e-6)
    base = first(tmp_path / "b", peft_path=str(adapter), reference=str(tiny_folder()))
    assert abs(base - math.log(2)) > 1e-3


@pytest.mark.medium
def test_another_reference_is_a_model_or_an_adapter_and_never_stays_in_memory(adapter, tmp_path, monkeypatch):
    assert first(tmp_path / "a", reference=str(tiny_folder())) == pytest.approx(math.log(2), abs=1e-6)
    held = first(tmp_path / "b", reference=str(adapter))
    assert abs(held - math.log(2)) > 1e-3
    assert first(tmp_path / "c", reference=str(adapter), peft_path=str(adapter)) == pytest.approx(math.log(2), abs=1e-6)
    order = []
    load, build = reference_module.load_reference, reference_module.Reference.by_model
    monkeypatch.setattr(reference_module, "load_reference", lambda args: order.append("reference") or load(args))
    monkeypatch.setattr(
        reference_module.Reference, "by_model", lambda self, *args: order.append("trained") or build(self, *args)
    )
    first(tmp_path / "d", reference=str(adapter), dataset=["tiny-pairs#23"])
    assert order == ["reference", "trained"]


@pytest.mark.medium
def test_the_reference_is_computed_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reference_module, "SHARD_ROWS", 5)
    own, counted = reference_module.ReferencePass._shard, []

    def counting(self: Any, model: Any, samples: Any, rows: range) -> Any:
        counted.append(rows)
        if len(counted) == 3 and stops:
            raise KeyboardInterrupt
        return own(self, model, samples, rows)

    monkeypatch.setattr(reference_module.ReferencePass, "_shard", counting)
    stops = True
    with pytest.raises(KeyboardInterrupt):
        first(tmp_path / "a", dataset_test_ratio=0, val_dataset_sample=0)
    stops = False
    done = len(counted) - 1
    loss = first(tmp_path / "b", dataset_test_ratio=0, val_dataset_sample=0)
    assert counted[3:] == [range(10, 15), range(15, 20), range(20, 24)], "the two that were whole are kept"
    assert done == 2
    assert first(tmp_path / "c", dataset_test_ratio=0, val_dataset_sample=0) == loss
    assert len(counted) == 6, "nothing is computed again"
    damaged = next((cache_root() / "reference").glob("*/5.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-4])
    assert first(tmp_path / "d", dataset_test_ratio=0, val_dataset_sample=0) == loss
    assert counted[6:] == [range(5, 10)]
    first(tmp_path / "e", dataset_test_ratio=0, val_dataset_sample=0, dtype="bf16")
    assert len(counted) == 12, "another dtype computes others"


@pytest.mark.medium
def test_a_loss_without_a_reference_computes_none(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module.ReferencePass, "over", None)
    for key in ("simpo", "orpo", "cpo"):
        made = run(tmp_path / key, loss=[key], max_steps=2)
        assert not (made.output_dir / "reference.npz").exists()
        assert all(map(math.isfinite, records(made.output_dir).values()))


# Going on


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [{}, {"sft_type": "full"}, {"packing": True, "max_length": 64}, {"quantization_bit": 4}, {"streaming": True}],
    ids=["lora", "full", "packed", "qlora", "streaming"],
)
def test_a_resumed_run_equals_the_whole_one(options, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    whole = run(tmp_path / "whole", **options)
    monkeypatch.setenv("LLMTUNE_CACHE", str(tmp_path / "empty"))  # the reference is in the run folder
    before = records(whole.output_dir)
    resumed = dpo(DpoArguments(resume_from_checkpoint=str(whole.output_dir / "checkpoint-2")))
    assert resumed.output_dir == whole.output_dir
    after = records(whole.output_dir)
    assert {step: after[step] for step in (3, 4)} == {step: before[step] for step in (3, 4)}


@pytest.mark.medium
def test_a_resumed_run_that_began_with_an_adapter_needs_its_reference(adapter, tmp_path, monkeypatch):
    made = run(tmp_path / "a", peft_path=str(adapter))
    checkpoint = str(made.output_dir / "checkpoint-2")
    before = records(made.output_dir)
    dpo(DpoArguments(resume_from_checkpoint=checkpoint))
    assert records(made.output_dir) == before
    (made.output_dir / "reference.npz").unlink()
    with pytest.raises(CheckpointError, match=r"reference\.npz is missing"):
        dpo(DpoArguments(resume_from_checkpoint=checkpoint))


def test_a_checkpoint_of_another_stage_is_not_resumed(lora, adapter, tmp_path):
    with pytest.raises(CheckpointError, match=r"trained by `llmtune dpo`.*--peft_path"):
        sft(SftArguments(resume_from_checkpoint=str(lora.last_checkpoint)))
    with pytest.raises(CheckpointError, match="trained by `llmtune sft`"):
        dpo(DpoArguments(resume_from_checkpoint=str(adapter)))


# What is refused, and what is learned


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss": ["sigmod"]}, "Did you mean 'sigmoid'"),
        ({"loss": ["kto"]}, "--loss kto is over labels"),
        ({"loss": ["sft*x"]}, "'x' is not a weight"),
        ({"loss": ["simpo"], "reference": "x"}, "has no reference model"),
        ({"streaming": True, "sft_type": "full"}, "--streaming true cannot compute the reference"),
        ({"truncation_strategy": "right"}, "would cut responses"),
        ({"loss": ["exo_pair"], "label_smoothing": 0.0}, "--loss exo_pair needs a value above 0"),
        ({"loss": ["sigmoid", "robust"], "label_smoothing": 0.5}, "--loss robust needs a value below 0.5"),
        ({"loss_on": "all"}, "--loss_on all is for sft"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options, reason):
    with pytest.raises(UsageError, match=reason):
        DpoArguments(**(RUN | options))


def test_options_of_a_loss_are_its_own_unless_given():
    args = DpoArguments(model_type="llmtune-tiny", loss=["simpo"])
    assert args.options_of("simpo") == {"beta": 2.0, "gamma": 1.0}
    assert DpoArguments(model_type="llmtune-tiny").loss_text() == "sigmoid (beta 0.1)"
    assert DpoArguments(model_type="llmtune-tiny", loss=["simpo"], beta=3.0).options_of("simpo")["beta"] == 3.0
    mixed = DpoArguments(model_type="llmtune-tiny", loss=["sigmoid", "hinge*0.5"], sft_weight=0.2)
    assert mixed.losses() == [("sigmoid", 1.0), ("hinge", 0.5), ("sft", 0.2)]


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (DpoArguments(model_type="llmtune-tiny", gamma=0.5, alpha=1.0, tau=0.1, beta=0.2), ["gamma", "alpha", "tau"]),
        (DpoArguments(model_type="llmtune-tiny", loss=["simpo", "hinge"], gamma=0.5, label_smoothing=0.1), []),
        (DpoArguments(model_type="llmtune-tiny", loss=["hinge"], label_smoothing=0.1), ["label_smoothing"]),
        (KtoArguments(model_type="llmtune-tiny", label_smoothing=0.1, desirable_weight=2.0), ["label_smoothing"]),
    ],
)
def test_an_option_that_no_loss_of_the_run_reads_has_no_effect(arguments, unused):
    assert sorted(arguments.unused_flags()) == sorted(f"--{name}" for name in unused)


def test_rows_without_pairs_are_no_data(tmp_path):
    with pytest.raises(DataError, match="llmtune kto"):
        run(tmp_path, dataset=["tiny-labels"])


@pytest.mark.medium
@pytest.mark.parametrize(("key", "beta", "steps"), [("sigmoid", None, 30), ("simpo", None, 30), ("orpo", 1.0, 60)])
def test_the_margin_of_rows_never_seen_grows(key, beta, steps, tmp_path):
    made = run(
        tmp_path, dataset=["tiny-pairs"], loss=[key], beta=beta, max_steps=steps, eval_steps=steps, learning_rate=2e-3,
        batch_size=8, gradient_accumulation_steps=1, val_dataset_sample=40,
    )  # fmt: skip
    assert made.metrics["eval_rewards/accuracies"] > 0.95
    assert last_checkpoint(made.output_dir) is not None


def test_the_reference_of_a_ranked_list_has_a_value_for_each_response(tmp_path):
    answers = [
        {"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in enumerate("abc")
    ]
    rows = [{"context": [{"role": "user", "content": f"q{number}"}], "completions": answers} for number in range(4)]
    file = tmp_path / "ranked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    made = run(tmp_path, dataset=[str(file)], dataset_test_ratio=0, max_steps=1)
    with np.load(made.output_dir / "reference.npz") as found:
        assert found["train"].shape == (12,)
    assert records(made.output_dir)[1] == pytest.approx(math.log(2), abs=1e-6)
    assert torch.isfinite(torch.tensor(records(made.output_dir)[1]))


@pytest.mark.medium
def test_the_report_tells_pairs_margins_and_both_log_probabilities(lora):
    text = (lora.output_dir / "report.md").read_text(encoding="utf-8")
    assert "24 pairs; in " in text
    assert "Loss: sigmoid (beta 0.1)" in text
    assert "Reference: the model as the run begins; 60 responses" in text
    for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert f"| {name} | " in text


def test_log_probabilities_that_fall_together_are_explained():
    records = [{"logps/chosen": -10.0, "logps/rejected": -11.0}, {"logps/chosen": -12.0, "logps/rejected": -20.0}]
    assert "--sft_weight" in _preferences(records)["log-probabilities"]
    assert "log-probabilities" not in _preferences([records[0], records[1] | {"logps/chosen": -9.0}])


def test_check_shows_the_prompt_once_and_both_responses_with_their_masks(capsys):
    assert main(["check", "dpo", "--model_type", "llmtune-tiny", "--dataset", "tiny-pairs", "--rows", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("What is 1 plus 1?") == 1
    assert "[chosen response, " in out
    assert "⟦1 plus 1 is 2.<|im_end|>⟧" in out
    assert "⟦No.<|im_end|>⟧" in out
    assert "254 pairs; in " in out


@pytest.mark.medium
def test_generations_are_measured_against_the_chosen_responses(tmp_path):
    made = run(tmp_path, predict_with_generate=True, max_new_tokens=8, max_steps=2)
    assert {"eval_rouge-l", "eval_bleu-4"} <= set(made.metrics)


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"sft_type": "ia3"}, {"lorap_lr_ratio": 4.0}, {"gradient_checkpointing": "full"}],
    ids=str,
)
def test_tuners_begin_at_log_2_too(options, tmp_path):
    assert first(tmp_path, **options) == pytest.approx(math.log(2), abs=1e-5)


def written(rows: list[dict[str, Any]], file: Path) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.mark.medium
def test_prompts_with_images_are_compared(vision_folder, pictures, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": "<image>What colour is it?"}],
            "images": [str(pictures / f"{name}.png")],
            "chosen": [{"role": "assistant", "content": f"It is {name}."}],
            "rejected": [{"role": "assistant", "content": "Green."}],
        }
        for name in ("red", "blue")
    ]
    made = run(
        tmp_path, model_type="qwen2-vl-2b-instruct", model_id_or_path=str(vision_folder("qwen2-vl")),
        dataset=[written(rows, tmp_path / "rows.jsonl")], dataset_test_ratio=0, max_steps=2,
        lora_target_modules=["ALL"],
    )  # fmt: skip
    assert records(made.output_dir)[1] == pytest.approx(math.log(2), abs=1e-6)
    assert "Prompts: computed for each response; images have no place" in (made.output_dir / "report.md").read_text()


@pytest.mark.medium
def test_responses_of_several_messages_with_calls_and_results_are_compared(tmp_path):
    """Results of tools within a response are context: they contribute nothing."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "it"}}}]}
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What colour is {name}?"}],
            "chosen": [
                call,
                {"role": "tool", "content": "red, says the tool"},
                {"role": "assistant", "content": "Red."},
            ],
            "rejected": [{"role": "assistant", "content": "Who cares?"}],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        }
        for name in ("blood", "a tomato")
    ]
    dataset = [written(rows, tmp_path / "rows.jsonl")]
    made = run(tmp_path, dataset=dataset, dataset_test_ratio=0, max_steps=2, tool_format="hermes")
    assert records(made.output_dir)[1] == pytest.approx(math.log(2), abs=1e-6)
    assert main(["check", "dpo", "--model_type", "llmtune-tiny", "--tool_format", "hermes", "--dataset", *dataset]) == 0
