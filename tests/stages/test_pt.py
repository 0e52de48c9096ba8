"""Continued pre-training: whole runs over documents, what they measure, and how they resume."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune import MergeArguments, PtArguments, SftArguments, merge, pt, sft
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, UsageError
from llmtune.models.tiny import tiny_folder
from llmtune.samples.blocks import JoinedDataset
from llmtune.samples.packing import PackedDataset
from llmtune.samples.prepare import Prepared, prepare
from llmtune.training.language_model import text_size
from llmtune.types import IGNORE_INDEX

TEXTS = [
    "The sun is a star.", "月亮绕着地球转。它没有自己的光。", "Rivers run to the sea. " * 30,
    "One and one is two. Two and two is four.", "从前有一座山,山上有一座庙。" * 20, "Snow is white.",
]  # fmt: skip
RUN: dict[str, Any] = {
    "model_type": "llmtune-tiny", "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "logging_steps": 1,
    "max_length": 64, "eval_steps": 4, "save_steps": 2, "save_total_limit": -1, "report_to": ["none"],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    lines, other, rows = folder / "lines.txt", folder / "other.txt", folder / "mixed.jsonl"
    lines.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    other.write_text("A cat sleeps on the wall.\nThe capital of France is Paris. " + "It is large. " * 20 + "\n")
    chat = {"query": "What is the sun?", "response": "A star."}
    made = [{"text": text} for text in TEXTS] + [chat]
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return {"lines": str(lines), "other": str(other), "mixed": str(rows)}


def arguments(files: dict[str, str], **options: Any) -> PtArguments:
    return PtArguments(**(RUN | {"dataset": [files["lines"]], "val_dataset": [files["other"]]} | options))


def run(folder: Path, files: dict[str, str], **options: Any) -> Any:
    return pt(arguments(files, output_dir=str(folder), **options))


def losses(result: Any) -> list[float]:
    lines = (result.output_dir / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def decoded(prepared: Prepared) -> list[str]:
    return [prepared.tokenizer.decode(sample["input_ids"]) for sample in prepared.train_tokens]


# Rows


def test_documents_of_a_text_file(files):
    lines = prepare(arguments(files, max_length=512))
    assert decoded(lines) == [f"{text}<|im_end|>" for text in TEXTS]
    whole = prepare(arguments(files, max_length=2048, document="file"))
    assert decoded(whole) == ["\n".join(TEXTS) + "<|im_end|>"]


def test_conversations_among_documents_learn_their_responses(files):
    prepared = prepare(arguments(files, dataset=[files["mixed"]], template_type="chatml"))
    sample = prepared.train_tokens[len(prepared.train_tokens) - 1]
    learned = [token for token in sample["labels"].tolist() if token != IGNORE_INDEX]
    assert prepared.tokenizer.decode(learned) == "A star.<|im_end|>"
    whole = prepare(arguments(files, dataset=[files["mixed"]], template_type="chatml", loss_on="everything"))
    assert (whole.train_tokens[len(whole.train_tokens) - 1]["labels"][1:] != IGNORE_INDEX).all()
    report = prepared.train_tokens.report
    assert (report.num_rows, report.num_documents, report.num_continued) == (7, 6, 2)
    assert report.num_windows == len(prepared.train_tokens) - 1
    assert report.num_split_rows == report.num_truncated == 0


def test_packing_is_the_default_and_blocks_replace_it(files):
    packed = prepare(arguments(files))
    assert isinstance(packed.train_set, PackedDataset)
    args = arguments(files, join_documents=True)
    assert not args.packing
    assert not args.unused_flags()
    assert isinstance(prepare(args).train_set, JoinedDataset)
    assert prepare(arguments(files, packing=False)).train_set is not packed.train_set


def test_a_base_model_gets_no_chat_template_from_documents_alone(files, tmp_path):
    base = shutil.copytree(tiny_folder(), tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    options = {"model_id_or_path": str(base), "template_type": "default-generation"}
    prepared = prepare(arguments(files, **options))
    assert prepared.tokenizer.chat_template is None
    assert decoded(prepared)[0] == f"{TEXTS[0]}<|im_end|>"
    mixed = prepare(arguments(files, dataset=[files["mixed"]], **options))
    assert mixed.tokenizer.chat_template


def test_a_pre_trained_text_of_sft_is_as_it_was(files):
    """sft cuts a long text, as it always did."""
    args = SftArguments(**(RUN | {"dataset": [files["lines"]], "dataset_test_ratio": 0.0}))
    tokens = prepare(args).train_tokens
    assert len(tokens) == len(TEXTS)
    assert tokens.report.num_truncated == 2
    assert tokens.report.num_documents == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": -1, "join_documents": True}, "--join_documents true needs a finite --max_length"),
        ({"padding_free": True, "join_documents": True}, "remove --padding_free"),
        ({"new_tokens_file": __file__, "sft_type": "ia3"}, "needs --sft_type lora or full"),
        ({"new_tokens_file": __file__, "modules_to_save": ["lm_head"]}, "remove one of the two"),
        ({"predict_with_generate": True, "join_documents": True}, "joins all rows"),
    ],
)
def test_what_is_refused(files, options, message):
    with pytest.raises(UsageError, match=message):
        arguments(files, **options)


@pytest.mark.parametrize(("sft_type", "rate"), [("lora", 1e-4), ("full", 2e-5)])
def test_learning_rates(sft_type, rate):
    assert PtArguments(model_type="llmtune-tiny", sft_type=sft_type).learning_rate == rate


# Losses and measures


def by_hand(files: dict[str, str], model: Any, *, size: int) -> tuple[float, int, int]:
    """Loss in nats, number of labels and bytes of the validation documents, token by token, without our code."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    nats, count, num_bytes = 0.0, 0, 0
    for text in Path(files["other"]).read_text(encoding="utf-8").splitlines():
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        num_bytes += len(text.encode("utf-8")) - len(tokenizer.decode(ids[:1]).encode("utf-8"))
        start = 0
        while start < len(ids) - 1:
            window = torch.tensor([ids[start : start + size]])
            with torch.no_grad():
                logps = model(window).logits[0, :-1].double().log_softmax(-1)
            nats -= float(logps.gather(1, window[0, 1:, None]).sum())
            count += window.shape[1] - 1
            start += size - 1
    return nats, count, num_bytes


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Any:
    return run(tmp_path_factory.mktemp("pt"), files, max_steps=4, sft_type="full")


@pytest.mark.medium
def test_perplexity_and_bits_per_byte_by_hand(files, trained):
    model = AutoModelForCausalLM.from_pretrained(str(trained.last_checkpoint), dtype=torch.float32).eval()
    nats, count, num_bytes = by_hand(files, model, size=64)
    metrics = trained.metrics
    assert metrics["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


@pytest.mark.medium
def test_measures_are_in_all_results(trained):
    folder = trained.output_dir
    names = ("eval_perplexity", "eval_bits_per_byte")
    evaluated = json.loads((folder / "eval_results.json").read_text())
    logged = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines()]
    report = (folder / "report.md").read_text(encoding="utf-8")
    for name in names:
        assert evaluated[name] == trained.metrics[name]
        assert any(name in record for record in logged)
        assert f"| {name.replace('_', ' ')} |" in report
    assert "6 in " in report
    assert "bytes of trainable text" in report
    of_training = json.loads((folder / "train_results.json").read_text())
    assert of_training["train_perplexity"] == pytest.approx(math.exp(of_training["train_loss"]))
    assert of_training["train_bits_per_byte"] > 0


@pytest.mark.medium
@pytest.mark.parametrize(
    "options", [{"packing": False, "batch_size": 3}, {"packing": True}, {"packing": True, "attn_impl": "sdpa"}]
)
def test_isolated_packing_gives_the_loss_of_each_window_alone(files, tmp_path, options):
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder()), dtype=torch.float32).eval()
    nats, count, _ = by_hand(files, model, size=64)
    found = run(tmp_path, files, max_steps=1, learning_rate=1e-12, eval_steps=1, eval_batch_size=2, **options)
    assert found.metrics["eval_loss"] == pytest.approx(nats / count, rel=1e-5)


@pytest.mark.medium
def test_blocks_give_the_loss_of_the_concatenation(files, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    model = AutoModelForCausalLM.from_pretrained(str(tiny_folder()), dtype=torch.float32).eval()
    texts = Path(files["other"]).read_text(encoding="utf-8").splitlines()
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    nats = 0.0
    for start in range(0, len(ids) - 1, 63):
        window = torch.tensor([ids[start : start + 64]])
        with torch.no_grad():
            logps = model(window).logits[0, :-1].double().log_softmax(-1)
        nats -= float(logps.gather(1, window[0, 1:, None]).sum())
    found = run(tmp_path, files, max_steps=1, learning_rate=1e-12, eval_steps=1, join_documents=True)
    num_bytes = sum(len(text.encode()) for text in texts) - len(tokenizer.decode(ids[:1]).encode())
    assert found.metrics["eval_loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert found.metrics["eval_bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert "attention crosses documents" in (found.output_dir / "report.md").read_text()


def test_the_first_token_of_all_blocks_is_not_counted(files):
    prepared = prepare(arguments(files, join_documents=True))
    blocks: Any = prepared.train_set
    size = text_size(blocks, prepared.template)
    whole = sum(int((blocks[index]["labels"] != IGNORE_INDEX).sum()) for index in range(len(blocks)))
    assert size.tokens == whole == int(prepared.train_tokens.lengths.sum()) - 1
    first = prepared.tokenizer.decode(prepared.train_tokens[0]["input_ids"][:1])
    assert size.num_bytes == sum(len(text.encode()) for text in TEXTS) - len(first.encode())


# Resuming, streaming, tuners


@pytest.mark.medium
@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout_p": 0.1},
        {"join_documents": True},
        {"sft_type": "full", "only_save_model": False},
        {"streaming": True},
        {"streaming": True, "join_documents": True},
    ],
    ids=lambda one: " ".join(one),
)
def test_resumed_losses_equal_uninterrupted(files, tmp_path, options):
    whole = run(tmp_path / "a", files, max_steps=6, **options)
    stopped = tmp_path / "b/llmtune-tiny/v0-x"
    stopped.mkdir(parents=True)
    shutil.copytree(whole.output_dir / "checkpoint-2", stopped / "checkpoint-2")
    resumed = run(tmp_path / "b", files, max_steps=6, resume_from_checkpoint=str(stopped / "checkpoint-2"), **options)
    assert losses(resumed) == losses(whole)[2:]
    assert resumed.metrics["eval_bits_per_byte"] == whole.metrics["eval_bits_per_byte"]


@pytest.mark.medium
def test_windows_of_a_stream_are_those_of_the_store(files):
    args = arguments(files, streaming=True, max_steps=1, packing=False)
    prepared = prepare(args)
    stream: Any = prepared.train_set
    running = iter(stream)
    streamed = sorted(next(running)["input_ids"].tolist() for _ in range(len(prepared.train_tokens)))
    assert streamed == sorted(sample["input_ids"].tolist() for sample in prepared.train_tokens)


@pytest.mark.medium
def test_a_run_of_another_stage_is_not_resumed(files, tmp_path):
    made = run(tmp_path, files, max_steps=2)
    with pytest.raises(CheckpointError, match="`llmtune pt`"):
        sft(SftArguments(**(RUN | {"dataset": [files["lines"]], "resume_from_checkpoint": str(made.last_checkpoint)})))


@pytest.mark.medium
@pytest.mark.parametrize("options", [{"quantization_bit": 4}, {"sft_type": "ia3"}], ids=lambda one: next(iter(one)))
def test_other_tuners(files, tmp_path, options):
    if "quantization_bit" in options:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    found = run(tmp_path, files, max_steps=6, **(options | {"learning_rate": 1e-2}))
    assert losses(found)[-1] < losses(found)[0]


# New tokens


@pytest.fixture
def terms(tmp_path) -> Path:
    file = tmp_path / "terms.txt"
    file.write_text("Rivers run\n\n地球转\n the\nRivers run\n<|im_end|>\n", encoding="utf-8")
    return file


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_new_tokens_start_as_their_mean_and_reload(files, tmp_path, terms, sft_type):
    options = {"new_tokens_file": str(terms), "sft_type": sft_type, "learning_rate": 1e-12, "max_steps": 1}
    start = run(tmp_path, files, **options)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()), dtype=torch.float32)
    old = AutoTokenizer.from_pretrained(str(tiny_folder()))
    tokenizer = AutoTokenizer.from_pretrained(str(start.last_checkpoint))
    ids = tokenizer.convert_tokens_to_ids(["Rivers run", "地球转"])
    assert ids == [len(old), len(old) + 1], "what it has already, blank lines and repeated ones add nothing"
    assert len(tokenizer) == len(old) + 2
    assert tokenizer("Rivers run to the sea")["input_ids"][0] == ids[0]
    model = _reloaded(start.last_checkpoint, sft_type, len(tokenizer))
    rows = model.get_input_embeddings()(torch.tensor(ids)).detach()
    for row, token in zip(rows, ["Rivers run", "地球转"], strict=True):
        pieces = old(token)["input_ids"]
        assert len(pieces) > 1
        mean = base.get_input_embeddings().weight[pieces].mean(0).detach()
        torch.testing.assert_close(row, mean, atol=1e-6, rtol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("sft_type", ["lora", "full"])
def test_new_tokens_are_trained_and_merged(files, tmp_path, terms, sft_type):
    found = run(tmp_path / "a", files, new_tokens_file=str(terms), sft_type=sft_type, max_steps=6, learning_rate=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(str(found.last_checkpoint))
    model = _reloaded(found.last_checkpoint, sft_type, len(tokenizer))
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()), dtype=torch.float32)
    (new,) = tokenizer("Rivers run", add_special_tokens=False)["input_ids"]
    pieces = AutoTokenizer.from_pretrained(str(tiny_folder()))("Rivers run")["input_ids"]
    moved = model.get_input_embeddings()(torch.tensor([new]))[0] - base.get_input_embeddings().weight[pieces].mean(0)
    assert moved.abs().max() > 1e-3
    if sft_type == "full":
        return
    folder = merge(MergeArguments(ckpt_dir=str(found.last_checkpoint), output_dir=str(tmp_path / "merged")))
    whole = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    text = tokenizer("Rivers run to the sea.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(whole(text).logits, model(text).logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(str(folder))("Rivers run")["input_ids"] == [new]


def _reloaded(checkpoint: Path, sft_type: str, vocabulary: int) -> Any:
    """The model by transformers and peft alone."""
    if sft_type == "full":
        return AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(str(tiny_folder()), dtype=torch.float32)
    base.resize_token_embeddings(vocabulary)
    assert load_file(checkpoint / "adapter_model.safetensors")
    return PeftModel.from_pretrained(base, str(checkpoint)).eval()


@pytest.mark.medium
def test_new_tokens_resume_to_the_same_losses(files, tmp_path, terms):
    whole = run(tmp_path / "a", files, max_steps=6, new_tokens_file=str(terms))
    resumed = run(tmp_path / "b", files, max_steps=6, resume_from_checkpoint=str(whole.output_dir / "checkpoint-2"))
    assert losses(resumed)[-4:] == losses(whole)[2:6]


@pytest.mark.medium
def test_a_file_that_a_strange_checkpoint_names_is_not_opened(files, tmp_path, terms):
    made = run(tmp_path, files, max_steps=2, new_tokens_file=str(terms)).last_checkpoint
    settings = json.loads((made / "sft_args.json").read_text())
    (made / "sft_args.json").write_text(json.dumps(settings | {"dataset": ["tiny-text"], "val_dataset": []}))
    (made / "checkpoint.json").unlink()
    with pytest.raises(UsageError, match=r"comes from elsewhere.*--new_tokens_file"):
        pt(PtArguments(**(RUN | {"resume_from_checkpoint": str(made), "max_steps": 4})))


def test_a_missing_file_of_new_tokens(newcomer, capsys):
    for dry in ("true", "false"):
        assert main(["pt", *WORDS, "--new_tokens_file", "nowhere.txt", "--dry_run", dry]) == 2
        assert "--new_tokens_file nowhere.txt: there is no such file" in capsys.readouterr().err


def test_a_file_without_new_tokens_is_refused(files, tmp_path):
    (tmp_path / "known.txt").write_text(" the\n1\n")
    with pytest.raises(UsageError, match="the tokenizer has all of them"):
        prepare(arguments(files, new_tokens_file=str(tmp_path / "known.txt")))


# The command


@pytest.fixture
def newcomer(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("One line.\n" + "A second line that is long. " * 20 + "\n", encoding="utf-8")
    return tmp_path


WORDS = ["--model_type", "llmtune-tiny", "--dataset", "book.txt", "--block_size", "32", "--dataset_test_ratio", "0.5"]


@pytest.mark.medium
def test_a_newcomer_in_an_empty_folder(newcomer, capsys):
    assert main(["pt", *WORDS, "--max_steps", "1", "--report_to", "none"]) == 0
    (found,) = (newcomer / "output/llmtune-tiny").glob("v0-*")
    assert "eval_bits_per_byte" in (found / "eval_results.txt").read_text()


def test_its_dry_run(newcomer, capsys):
    assert main(["pt", *WORDS, "--dry_run", "true", "--join_documents", "true"]) == 0
    said = capsys.readouterr().out
    assert "joined and cut into blocks" in said
    assert "16 blocks" in said
    assert not (newcomer / "output").exists()
    assert main(["pt", *WORDS, "--dry_run", "true"]) == 0
    assert "packed" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "expected"), [([], "1 of them in several"), (["--join_documents", "true"], "blocks")])
def test_its_check(newcomer, capsys, more, expected):
    assert main(["check", "pt", *WORDS, *more]) == 0
    said = capsys.readouterr().out
    assert expected in said
    assert "One line.<|im_end|>" in said or "A second line" in said


@pytest.mark.medium
def test_its_plan(newcomer, capsys):
    (newcomer / "terms.txt").write_text("second line\n")
    assert main(["plan", "pt", *WORDS, "--new_tokens_file", "terms.txt"]) == 0
    assert "tokens" in capsys.readouterr().out


def test_unknown_words(newcomer, capsys):
    assert main(["pt", *WORDS, "--dokument", "file"]) == 2
    assert "--document" in capsys.readouterr().err


@pytest.mark.slow
def test_bits_per_byte_of_the_embedded_texts_fall(tmp_path):
    found = pt(PtArguments(
        model_type="llmtune-tiny", dataset=["tiny-text"], sft_type="full", learning_rate=2e-3, max_length=512,
        gradient_accumulation_steps=4, eval_steps=1, max_steps=30, output_dir=str(tmp_path), report_to=["none"],
        save_strategy="no",
    ))  # fmt: skip
    lines = (found.output_dir / "logging.jsonl").read_text().splitlines()
    bits = [record["eval_bits_per_byte"] for record in map(json.loads, lines) if "eval_bits_per_byte" in record]
    assert bits[0] > 3.5
    assert bits[-1] < 2.5
