"""Whole runs of models that see: training, checkpoints, answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from llmtune import SftArguments, infer, sft
from llmtune.arguments.infer import InferArguments
from llmtune.cli.main import main
from llmtune.errors import DataError, UsageError
from llmtune.inference.load import load_engine
from llmtune.tuners.targets import part_of
from llmtune.types import Media

from ..tiny_vision import KEYS, KINDS

QUICK: dict[str, Any] = {
    "batch_size": 3, "gradient_accumulation_steps": 1, "max_steps": 10, "eval_steps": 5, "logging_steps": 1,
    "dataset_test_ratio": 0, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_ratio": 0,
    "report_to": ["none"], "lora_target_modules": ["ALL"],
}  # fmt: skip


def quick(kind: str, folder: Path, output: Path, data: Path, **options: Any) -> Any:
    named = {"model_type": KEYS[kind], "model_id_or_path": str(folder), "dataset": [str(data)]}
    return sft(SftArguments(**(QUICK | named | {"output_dir": str(output)} | options)))


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "logging.jsonl").read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="session")
def colours(pictures) -> Path:
    """One question, two pictures, two answers; and a row without a picture."""
    rows = [
        {"query": "<image>What colour is it?", "response": "Red.", "images": [str(pictures / "red.png")]},
        {"query": f"<img>{pictures}/blue.png</img>What colour is it?", "response": "It is blue."},
        {"query": "What is 1 plus 2?", "response": "3."},
    ]
    file = pictures / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def lora(vision_folder, assets, tmp_path_factory) -> Any:
    demo = assets / "data" / "mllm_demo.json"
    return quick("qwen2-vl", vision_folder("qwen2-vl"), tmp_path_factory.mktemp("lora"), demo, lora_rank=16)


@pytest.fixture(scope="module")
def full(vision_folder, colours, tmp_path_factory) -> Any:
    """Trained until it tells the pictures apart: the tower is as random as it was."""
    options = {"sft_type": "full", "max_steps": 40, "learning_rate": 3e-3}
    return quick("qwen2-vl", vision_folder("qwen2-vl"), tmp_path_factory.mktemp("full"), colours, **options)


# Training


def test_lora_on_the_demo_rows(lora):
    found = losses(lora.output_dir)
    assert len(found) == 10
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_each_vision_architecture_trains(kind, vision_folder, colours, tmp_path):
    run = quick(kind, vision_folder(kind), tmp_path, colours, max_steps=4)
    found = losses(run.output_dir)
    assert found[-1] < found[0] - 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_does_not_change_vision_losses(kind, vision_folder, colours, tmp_path):
    """Qwen2.5-VL and Qwen3-VL tell Trainer that they do not take the number of tokens of a whole step."""
    folder = vision_folder(kind)
    options = {"max_steps": 3, "sft_type": "full", "learning_rate": 1e-3, "train_args": ["full_determinism=False"]}
    one = quick(kind, folder, tmp_path / "3x1", colours, batch_size=3, **options)
    three = quick(kind, folder, tmp_path / "1x3", colours, batch_size=1, gradient_accumulation_steps=3, **options)
    assert losses(three.output_dir) == pytest.approx(losses(one.output_dir), rel=1e-4)


@pytest.mark.medium
def test_vision_models_train_with_common_options(vision_folder, colours, tmp_path):
    run = quick(
        "qwen2-vl", vision_folder("qwen2-vl"), tmp_path, colours, max_steps=2, gradient_checkpointing=True,
        dataloader_num_workers=2, group_by_length=True, val_dataset=[str(colours)], predict_with_generate=True,
        max_new_tokens=4, do_sample=False, dtype="bf16",
    )  # fmt: skip
    assert {"eval_loss", "eval_rouge-l"} <= set(run.metrics)
    assert "- generation:" in (run.output_dir / "report.md").read_text(encoding="utf-8")


def test_rows_left_out_of_training_do_not_end_it_later(vision_folder, colours, pictures, tmp_path, capsys):
    """The first rows are asked once more for the report, and all those of validation for its scores."""
    rows = [{"query": "<image>a", "response": "b", "images": [str(pictures / "none.png")]}]
    rows += [{"query": "<image>" * 9 + "a", "response": "b", "images": [str(pictures / "turned.jpg")] * 9}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows) + colours.read_text(encoding="utf-8"))
    run = quick(
        "qwen2-vl", vision_folder("qwen2-vl"), tmp_path, data, val_dataset=[str(data)], max_steps=1, max_length=80,
        predict_with_generate=True, max_new_tokens=2,
    )  # fmt: skip
    told = capsys.readouterr().err
    assert "1 of 5 training rows" in told
    assert "1 of 4 training samples were skipped, since truncating them to --max_length 80 would cut an image" in told
    assert "eval_rouge-l" in run.metrics
    assert (run.output_dir / "report.md").is_file()


def test_large_images_can_be_made_smaller(vision_folder, colours, tmp_path):
    """In training, in what the checkpoint says about images, and in inference."""
    folder, options = vision_folder("qwen2-vl"), {"max_steps": 1}
    whole = quick("qwen2-vl", folder, tmp_path, colours, **options)
    small = quick("qwen2-vl", folder, tmp_path, colours, **options, max_pixels=56 * 56)
    sizes = [
        AutoImageProcessor.from_pretrained(str(run.last_checkpoint)).size["longest_edge"] for run in (whole, small)
    ]
    assert sizes == [16 * 28 * 28, 56 * 56]
    saved = json.loads((small.last_checkpoint / "sft_args.json").read_text())
    assert saved["max_pixels"] == 56 * 56
    counts = []
    for run in (whole, small):
        template = load_engine(InferArguments(ckpt_dir=str(run.last_checkpoint), eval_human=True)).template
        counts += template.media.measure([Media(str(colours.parent / "turned.jpg"))]).values()
    assert counts[1] < counts[0]


@pytest.mark.parametrize(
    ("kind", "pixels", "said"), [("llava", 10**5, "to one size"), ("qwen2-vl", 100, "needs 3,136 pixels or more")]
)
def test_a_limit_that_cannot_be(kind, pixels, said, vision_folder, colours, tmp_path):
    with pytest.raises(UsageError, match=said):
        quick(kind, vision_folder(kind), tmp_path, colours, max_pixels=pixels)


# What is trained


def test_lora_leaves_the_eyes_alone(lora, vision_folder):
    base = AutoModelForImageTextToText.from_pretrained(str(vision_folder("qwen2-vl")))
    tuned = PeftModel.from_pretrained(base, str(lora.last_checkpoint))
    adapted = {name for name, _ in tuned.named_parameters() if "lora_" in name}
    assert adapted
    assert {part_of(name) for name in adapted} == {"language"}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({}, {"language"}),
        ({"freeze_vit": False}, {"language", "vit"}),
        ({"freeze_aligner": False}, {"language", "aligner"}),
    ],
)
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_freezing_flags_decide_which_vision_parts_change(sft_type, flags, trained, vision_folder, colours, tmp_path):
    folder = vision_folder("qwen2.5-vl")
    run = quick("qwen2.5-vl", folder, tmp_path, colours, max_steps=2, sft_type=sft_type, learning_rate=1e-2, **flags)
    base = AutoModelForImageTextToText.from_pretrained(str(folder))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    if sft_type == "lora":
        tuned = PeftModel.from_pretrained(base, str(run.last_checkpoint)).merge_and_unload()
    else:
        tuned = AutoModelForImageTextToText.from_pretrained(str(run.last_checkpoint))
    after = tuned.state_dict()
    assert {part_of(name) for name in before if not torch.equal(before[name], after[name])} == trained


@pytest.mark.medium
def test_a_flag_that_freezes_nothing_is_named(tmp_path, capsys):
    sft(SftArguments(model_type="llmtune-tiny", dataset=["tiny-qa#8"], max_steps=1, freeze_vit=False, max_pixels=9,
                     output_dir=str(tmp_path), report_to=["none"]))  # fmt: skip
    told = capsys.readouterr().err
    assert "--freeze_vit has no effect" in told
    assert "--max_pixels has no effect" in told


# Checkpoints


@pytest.mark.medium
def test_a_checkpoint_is_whole_for_other_programs(lora, full, vision_folder):
    for run in (lora, full):
        for folder in (run.last_checkpoint, run.output_dir):
            ours = AutoImageProcessor.from_pretrained(str(folder))
            assert ours.to_dict() == AutoImageProcessor.from_pretrained(str(vision_folder("qwen2-vl"))).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(str(run.last_checkpoint))
        content = [{"type": "image"}, {"type": "text", "text": "a"}]
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        assert "<|vision_start|><|image_pad|><|vision_end|>a" in text
    model = AutoModelForImageTextToText.from_pretrained(str(full.last_checkpoint))
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"


def test_a_merged_checkpoint_sees(lora, colours, tmp_path):
    options = {"do_sample": False, "max_new_tokens": 4, "result_dir": str(tmp_path), "val_dataset": [str(colours)]}
    apart = infer(InferArguments(ckpt_dir=str(lora.last_checkpoint), **options))
    merged = infer(InferArguments(ckpt_dir=str(lora.last_checkpoint), merge_lora_and_save=True, **options))
    folder = lora.last_checkpoint.with_name(f"{lora.last_checkpoint.name}-merged")
    assert (folder / "preprocessor_config.json").is_file()
    assert merged == apart


def test_resumed_vision_losses_equal_uninterrupted(vision_folder, colours, tmp_path):
    folder = vision_folder("qwen2-vl")
    options = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "save_total_limit": -1}
    whole = quick("qwen2-vl", folder, tmp_path, colours, **options)
    again = quick("qwen2-vl", folder, tmp_path, colours, **options,
                  resume_from_checkpoint=str(whole.output_dir / "checkpoint-2"))  # fmt: skip
    assert losses(again.output_dir)[-2:] == losses(whole.output_dir)[2:4]


# Answers


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_the_answer_depends_on_the_image(batch_size, stream, full, colours, tmp_path):
    """Two rows ask the same; what differs is the picture alone."""
    found = infer(
        InferArguments(
            ckpt_dir=str(full.last_checkpoint), val_dataset=[str(colours)], do_sample=False, max_new_tokens=12,
            infer_batch_size=batch_size, stream=stream, result_dir=str(tmp_path),
        )
    )  # fmt: skip
    assert [result["response"] for result in found] == ["Red.", "It is blue.", "3."]


def test_sampling_and_beams_see(full, colours, tmp_path):
    for options in ({"num_beams": 2, "do_sample": False}, {"do_sample": True, "top_k": 1}):
        found = infer(
            InferArguments(ckpt_dir=str(full.last_checkpoint), val_dataset=[str(colours)], infer_batch_size=3,
                           max_new_tokens=12, result_dir=str(tmp_path), **options)
        )  # fmt: skip
        assert [result["response"] for result in found] == ["Red.", "It is blue.", "3."]


def test_rows_with_a_broken_image_are_left_out_of_the_answers(full, pictures, tmp_path, capsys):
    rows = [
        {"query": "<image>What colour is it?", "images": [str(pictures / "none.png")]},
        {"query": "<image>What colour is it?", "images": [str(pictures / "red.png")]},
    ]
    file = tmp_path / "ask.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"ckpt_dir": str(full.last_checkpoint), "val_dataset": [str(file)], "do_sample": False,
               "max_new_tokens": 12, "result_dir": str(tmp_path)}  # fmt: skip
    assert [result["response"] for result in infer(InferArguments(**options))] == ["Red."]
    assert "1 of 2 rows have an image that cannot be read" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        infer(InferArguments(**options, strict=True))


def test_a_talk_about_images(full, pictures, monkeypatch, capsys):
    asked = [
        f"<img>{pictures}/blue.png</img>What colour is it?",
        "clear",
        f"<img>{pictures}/none.png</img>What colour is it?",
        f"<img>{pictures}/red.png</img>What colour is it?",
        "Really?",
        "exit",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(asked) + "\n"))
    found = infer(
        InferArguments(ckpt_dir=str(full.last_checkpoint), eval_human=True, do_sample=False, max_new_tokens=12)
    )
    assert [result["response"] for result in found[:2]] == ["It is blue.", "Red."]
    assert len(found) == 3, "an image stays in the talk, and the one that is missing begins no turn"
    told = capsys.readouterr().out
    assert "<img>path</img>" in told
    assert "none.png: there is no such file" in told


def test_a_blind_model_says_that_it_is(colours, tmp_path, capsys):
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 2, "result_dir": str(tmp_path)}
    infer(InferArguments(model_type="llmtune-tiny", val_dataset=[str(colours)], **options))
    assert "2 rows name images, but this model takes text only" in capsys.readouterr().err


@pytest.mark.parametrize("sft_type", ["full", "lora"])
def test_a_checkpoint_has_its_image_processor_whatever_the_template_shows(vision_folder, tmp_path, sft_type):
    """Trained on text alone, under a template without a place for images, it is the vision model that it was."""
    (tmp_path / "text.jsonl").write_text('{"query": "What is 1 plus 2?", "response": "3."}\n' * 4)
    run = quick(
        "qwen2-vl", vision_folder("qwen2-vl"), tmp_path, tmp_path / "text.jsonl",
        template_type="chatml", sft_type=sft_type, max_steps=1,
    )  # fmt: skip
    assert (run.last_checkpoint / "preprocessor_config.json").is_file()
    assert load_engine(InferArguments(ckpt_dir=str(run.last_checkpoint), eval_human=True)).template.media is None


@pytest.mark.parametrize("kind", ["llava", "qwen2-vl"])
def test_check_compares_the_template_with_the_processor_s(kind, vision_folder, capsys):
    assert (
        main(["check", "--model_type", KEYS[kind], "--model_id_or_path", str(vision_folder(kind)), "--template"]) == 0
    )
    assert "differs" not in capsys.readouterr().out


def test_a_merge_in_memory_takes_the_base_s_image_processor_where_the_checkpoint_has_none(
    vision_folder, colours, tmp_path, monkeypatch
):
    """As the streamed merge does: checkpoints of older versions have a tokenizer alone."""
    from llmtune.merging import merge

    run = quick("qwen2-vl", vision_folder("qwen2-vl"), tmp_path, colours, max_steps=2, learning_rate=1e-2)
    for file in run.last_checkpoint.glob("*processor_config.json"):
        file.unlink()
    monkeypatch.setattr(merge, "STREAMED_LOADERS", ())
    merged = merge.merge_checkpoint(InferArguments(ckpt_dir=str(run.last_checkpoint), eval_human=True))
    assert (merged / "preprocessor_config.json").is_file()
