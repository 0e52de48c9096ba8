"""What a user can get wrong: each gives one line that names the thing and the next step, and the right exit status."""

# ruff: noqa: E501 - a table reads better in long lines

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from llmtune.cli.main import main

ROW = '{"query": "a%d", "response": "b"}\n'
GOOD = "".join(ROW % number for number in range(10))
FILES: dict[str, bytes] = {
    "good.jsonl": GOOD.encode(),
    "empty.jsonl": b"",
    "notjson.jsonl": b"not json\n",
    "columns.jsonl": b'{"foo": 1}\n',
    "onebad.jsonl": (GOOD + '{"foo": 1}\n' + ROW % 11).encode(),
    "line4.jsonl": (GOOD[: len(ROW % 1) * 3] + '{"query": \n' + GOOD).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + GOOD.encode(),
    "crlf.jsonl": GOOD.replace("\n", "\r\n").encode(),
    "nul.jsonl": b'{"query": "a\x00", "response": "b"}\n',
    "gbk.jsonl": '{"query": "你好", "response": "b"}\n'.encode("gbk"),
    "broken.jsonl.gz": gzip.compress(GOOD.encode())[:-9],
    "model.txt": b"x\n",
}
SFT = ["sft", "--model_type", "llmtune-tiny", "--max_steps", "1", "--batch_size", "2"]
CASES = [
    # (arguments, exit status, what the line has to say)
    (["sft", "--model_type", "llmtune-tini", "--dataset", "good.jsonl"], 2, ["'llmtune-tini'", "'llmtune-tiny'", "llmtune list models"]),
    (["sft", "--model_type", "Qwen/Qwen2.5-7B", "--dataset", "good.jsonl"], 2, ["path or hub id", "--model_id_or_path Qwen/Qwen2.5-7B"]),
    (["sft", "--model_id_or_path", "some/where"], 1, ["'some/where'", "is not on this machine"]),
    (["sft", "--model_id_or_path", "./where"], 2, ["no folder ./where", "--model_type", "llmtune list models"]),
    (["sft"], 1, ["qwen/Qwen-7B-Chat", "is not on this machine"]),
    (["sft", "--model_type", "llmtune-tiny"], 1, ["AI-ModelScope/blossom-math-v2", "is not on this machine"]),
    ([*SFT, "--dataset", "tiny-q"], 2, ["'tiny-q'", "'tiny-qa'"]),
    ([*SFT, "--dataset", "good.jsonl", "--template_type", "chatmll"], 2, ["'chatmll'", "'chatml'"]),
    ([*SFT, "--datset", "good.jsonl"], 2, ["--datset", "--dataset"]),
    ([*SFT, "--dataset", "god.jsonl"], 1, ["god.jsonl", "good.jsonl"]),
    ([*SFT, "--dataset", "empty.jsonl"], 1, ["empty.jsonl is empty"]),
    ([*SFT, "--dataset", "notjson.jsonl"], 1, ["not JSON at line 1"]),
    ([*SFT, "--dataset", "columns.jsonl"], 1, ["columns.jsonl", "'foo'", "query/response"]),
    ([*SFT, "--dataset", "onebad.jsonl", "--strict"], 1, ["onebad.jsonl, line 11", "--strict false"]),
    ([*SFT, "--dataset", "line4.jsonl", "--strict", "true"], 1, ["line 4"]),
    ([*SFT, "--dataset", "nul.jsonl"], 1, ["NUL byte", "line 1"]),
    ([*SFT, "--dataset", "gbk.jsonl"], 1, ["not UTF-8", "iconv -f GB18030"]),
    ([*SFT, "--dataset", "broken.jsonl.gz"], 1, ["broken.jsonl.gz"]),
    ([*SFT, "--dataset", "ms::some/data"], 1, ["some/data", "is not on this machine"]),
    ([*SFT, "--dataset", "good.jsonl#x"], 2, ["after the # comes"]),
    ([*SFT, "--dataset", "good.jsonl", "--max_length", "0"], 2, ["--max_length must be 2 or more, or -1"]),
    ([*SFT, "--dataset", "good.jsonl", "--max_length", "5", "--truncation_strategy", "delete"], 1, ["No training sample is left"]),
    ([*SFT, "--dataset", "good.jsonl", "--batch_size", "0"], 2, ["--batch_size", "1 or more"]),
    ([*SFT, "--dataset", "good.jsonl", "--batch_size", "two"], 2, ["--batch_size", "'two'"]),
    ([*SFT, "--dataset", "good.jsonl", "--sft_type", "lara"], 2, ["--sft_type", "lora"]),
    ([*SFT, "--dataset", "good.jsonl", "--lora_target_modules", "q_prj"], 2, ["q_prj", "q_proj", "ALL"]),
    ([*SFT, "--dataset", "good.jsonl", "--lora_target_modules", "ALL", "q_proj"], 2, ["ALL, DEFAULT, or names"]),
    ([*SFT, "--dataset", "good.jsonl", "--sft_type", "full", "--quantization_bit", "4"], 2, ["needs --sft_type lora"]),
    ([*SFT, "--dataset", "good.jsonl", "--sft_type", "full", "--dtype", "fp16"], 2, ["needs a GPU"]),
    ([*SFT, "--dataset", "good.jsonl", "--deepspeed", "zero4"], 2, ["--deepspeed_config_path zero4", "zero2", "zero3_offload"]),
    ([*SFT, "--dataset", "good.jsonl", "--fsdp"], 2, ["--fsdp", "--nproc 2"]),
    ([*SFT, "--dataset", "good.jsonl", "--fsdp", "--only_save_model", "true"], 2, ["remove --only_save_model true"]),
    ([*SFT, "--dataset", "good.jsonl", "--fsdp", "--deepspeed", "zero2"], 2, ["--fsdp and --deepspeed_config_path"]),
    ([*SFT, "--dataset", "good.jsonl", "--on_nan", "skip", "--deepspeed", "zero2"], 2, ["--on_nan skip", "--deepspeed_config_path"]),
    ([*SFT, "--dataset", "good.jsonl", "--nproc", "-1"], 2, ["--nproc must be 0 or more"]),
    ([*SFT, "--dataset", "good.jsonl", "--output_dir", "model.txt"], 1, ["model.txt", "--output_dir"]),
    ([*SFT, "--dataset", "good.jsonl", "--resume_from_checkpoint", "nowhere"], 1, ["nowhere", "no such folder"]),
    ([*SFT, "--dataset", "good.jsonl", "--train_args", "warmup_stesp=1"], 2, ["warmup_stesp", "warmup_steps"]),
    ([*SFT, "--dataset", "good.jsonl", "--train_args", "warmup_steps"], 2, ["key=value"]),
    ([*SFT, "--dataset", "good.jsonl", "--lr_scheduler_type", "cosin"], 2, ["cosin", "cosine"]),
    ([*SFT, "--dataset", "good.jsonl", "--custom_register_path", "mine.py"], 2, ["mine.py", "no such file"]),
    ([*SFT, "--dataset", "good.jsonl", "--template_type", "default-generation", "--system", "x"], 2, ["no slot for a system prompt"]),
    ([*SFT, "--dataset", "good.jsonl", "--config", "run.yaml"], 2, ["run.yaml"]),
    (["sft", "--model_type", "qwen2.5-7b", "--dataset", "good.jsonl"], 1, ["Qwen/Qwen2.5-7B", "is not on this machine"]),
    (["infer", "--ckpt_dir", "nowhere"], 1, ["no checkpoint folder nowhere"]),
    (["infer", "--ckpt_dir", "."], 1, ["is not a checkpoint"]),
    (["infer", "--ckpt_dir", "earlier"], 1, ["Did you mean earlier/tiny/v0/checkpoint-50?"]),
    (["serve", "--model_type", "llmtune-tiny", "--adapters", "law=nowhere"], 1, ["no checkpoint folder nowhere"]),
    (["web", "--model_type", "llmtune-tiny", "--adapters", "law"], 2, ["NAME=FOLDER", "'law'", "--ckpt_dir"]),
    (["infer", "--model_type", "llmtune-tiny", "--val_dataset", "god.jsonl"], 1, ["god.jsonl", "good.jsonl"]),
    (["check", "--model_type", "llmtune-tiny", "--dataset", "god.jsonl"], 1, ["god.jsonl"]),
    (["list", "modles"], 2, ["models, datasets, templates, tool_formats, metrics, losses, advantages, rewards, tools or plugins"]),
    (["show", "model", "llmtune-tni"], 2, ["'llmtune-tiny'"]),
    (["merge", "--lora_model", "x"], 1, ["no checkpoint folder x"]),
    (["frob"], 2, ["'frob'", "sft"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    for age, step in ((5, 9), (0, 50)):
        (tmp_path / f"earlier/tiny/v0/checkpoint-{step}").mkdir(parents=True)
        os.utime(tmp_path / f"earlier/tiny/v0/checkpoint-{step}", (10_000 - age, 10_000 - age))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "parts"), CASES, ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else ""
)
def test_bad_input_gives_one_line_without_traceback_and_no_checkpoint(arguments, status, parts, capsys):
    assert main(arguments) == status
    told = capsys.readouterr().err
    assert "Traceback" not in told
    last = told[told.rindex("llmtune: ") :]
    for part in parts:
        assert part in last
    assert not list(Path("output").rglob("checkpoint-*"))


@pytest.mark.parametrize(
    ("file", "said"),
    [("onebad.jsonl", "1 of 12 rows is bad"), ("line4.jsonl", "1 of 14 rows is bad"), ("bom.jsonl", "10 rows"), ("crlf.jsonl", "10 rows")],
)  # fmt: skip
def test_what_does_not_stop_a_run(file, said, capsys):
    assert main([*SFT, "--dataset", file, "--save_strategy", "no"]) == 0
    assert said in capsys.readouterr().err


def test_rows_that_are_too_long_are_counted(capsys):
    assert main([*SFT, "--dataset", "good.jsonl", "--max_length", "9", "--save_strategy", "no"]) == 0
    told = capsys.readouterr().err
    assert "9 of 9 training samples are longer than --max_length 9 and lost " in told
    assert "--truncation_strategy delete" in told


def test_debug_shows_the_traceback():
    from llmtune.errors import DataError

    with pytest.raises(DataError):
        main([*SFT, "--dataset", "god.jsonl", "--debug"])


def test_check_shows_samples_statistics_and_html_and_trains_nothing(folder, capsys):
    assert (
        main(["check", "--model_type", "llmtune-tiny", "--dataset", "good.jsonl", "--rows", "1", "--html", "page.html"])
        == 0
    )
    told = capsys.readouterr().out
    assert "⟦b<|im_end|>⟧" in told
    assert told.count("<|im_start|>user⏎\na") == 1
    for name in ("rows", "samples", "tokens", "trainable tokens", "tokens per sample", "steps per epoch"):
        assert f"\n{name} " in told
    assert "steps per epoch     1\n" in told, "9 rows, 1 x 16 per step"
    assert "trainable" in (folder / "page.html").read_text(encoding="utf-8")
    assert not (folder / "output").exists(), "nothing is trained"


def test_an_own_module_with_a_fault(folder, capsys):
    (folder / "mine.py").write_text("from llmtune import register_model\n1 / 0\n")
    assert main([*SFT, "--dataset", "good.jsonl", "--custom_register_path", "mine.py"]) == 1
    assert "mine.py raises ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "a_step", "in_all"),
    [
        ((), "8 (2 x 4)", "6"),
        (("--nproc", "3"), "24 (2 x 4 x 3 processes)", "2"),
        (("--nproc", "0"), "8 (2 x 4 per GPU; steps as for one GPU)", "6"),
    ],
)
def test_check_counts_the_steps_of_all_processes(tmp_path, monkeypatch, capsys, flags, a_step, in_all):
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    argv = ["check", "--model_type", "llmtune-tiny", "--dataset", "tiny-qa#43", "--dataset_test_ratio", "0"]
    argv += ["--batch_size", "2", "--gradient_accumulation_steps", "4", "--num_train_epochs", "1", *flags]
    assert main(argv) == 0
    pairs = (line.strip().partition("  ") for line in capsys.readouterr().out.splitlines())
    shown = {name: text.strip() for name, _, text in pairs}
    assert shown["samples per step"] == a_step
    assert shown["total steps"] == in_all
