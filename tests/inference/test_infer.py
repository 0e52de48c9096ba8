"""Answers of checkpoints: datasets, talks, merging, stopping."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtune import InferArguments, SftArguments, infer, sft
from llmtune.data.formats import to_conversation
from llmtune.errors import CheckpointError, DataError, OutputError, UsageError
from llmtune.inference import chat as chat_module
from llmtune.inference.engine import Engine
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.models.tiny import tiny_folder
from llmtune.templates.lookup import get_template
from llmtune.types import Conversation, Message

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Whole weights that have learned by heart to answer eight questions."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = [{"query": f"question {i}", "response": f"answer {i}!"} for i in range(8)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return sft(
        SftArguments(
            model_type="llmtune-tiny", sft_type="full", dataset=[str(folder / "rows.json")], dataset_test_ratio=0.25,
            batch_size=6, gradient_accumulation_steps=1, max_steps=90, learning_rate=2e-3, output_dir=str(folder),
            eval_strategy="no", system="be short", report_to=["none"],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tuned: Any) -> Any:
    """LoRA on top of it."""
    folder = tmp_path_factory.mktemp("adapter")
    return sft(
        SftArguments(
            model_type="llmtune-tiny", model_id_or_path=str(tuned.last_checkpoint), dataset=["tiny-qa#32"],
            lora_target_modules=["ALL"], batch_size=8, gradient_accumulation_steps=1, max_steps=6, learning_rate=1e-2,
            output_dir=str(folder), eval_strategy="no", report_to=["none"],
        )
    )  # fmt: skip


@pytest.fixture
def engine(tuned: Any) -> Engine:
    return load_engine(InferArguments(ckpt_dir=str(tuned.last_checkpoint), eval_human=True))


@pytest.mark.medium
def test_the_checkpoint_alone_is_enough(tuned, capsys):
    args = InferArguments(ckpt_dir=str(tuned.last_checkpoint), **GREEDY)
    assert (args.model_type, args.sft_type, args.template_type) == ("llmtune-tiny", "full", "chatml")
    assert (args.system, args.dtype, args.dataset_test_ratio) == ("be short", "fp32", 0.25)
    assert args.eval_human is False, "the run's datasets are there"
    results = infer(args)
    assert len(results) == 2, "a quarter of eight rows was split off"
    assert set(results[0]) == {"query", "response", "history", "system", "label"}
    (file,) = tuned.last_checkpoint.glob("infer_result_*.jsonl")
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == results
    (metrics,) = tuned.last_checkpoint.glob("infer_metrics_*.json")
    assert {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match"} <= set(json.loads(metrics.read_text()))
    shown = capsys.readouterr().out
    assert "<|im_start|>system\nbe short<|im_end|>" in shown
    assert shown.count("-" * 80) == 2
    assert f"[LABELS]{results[0]['label']}" in shown


def test_flags_that_contradict_or_change_nothing(tuned, tmp_path, capsys):
    with pytest.raises(UsageError, match="is a full checkpoint"):
        InferArguments(ckpt_dir=str(tuned.last_checkpoint), sft_type="lora")
    options = GREEDY | {"ckpt_dir": str(tuned.last_checkpoint), "result_dir": str(tmp_path), "show_dataset_sample": 1}
    infer(InferArguments(**options, truncation_strategy="right", loss_on="all"))
    told = capsys.readouterr().err
    assert "--truncation_strategy has no effect on generation" in told
    assert "--loss_on has no effect on generation" in told


def test_flags_win_over_the_checkpoint(tuned):
    args = InferArguments(ckpt_dir=str(tuned.last_checkpoint), system="mine", max_length=99, dataset=["tiny-qa"])
    assert (args.system, args.max_length, args.dataset) == ("mine", 99, ["tiny-qa"])
    assert args.dataset_test_ratio == 0.01, "the run's split belongs to the run's data"
    alone = InferArguments(
        ckpt_dir=str(tuned.last_checkpoint), load_args_from_ckpt_dir=False, model_type="llmtune-tiny"
    )
    assert (alone.system, alone.eval_human) == (None, True)


def test_rows_of_a_file_without_responses_get_the_trained_ones(tuned, tmp_path):
    rows = tmp_path / "ask.jsonl"
    rows.write_text("".join(f'{{"query": "question {i}"}}\n' for i in range(8)))
    options = GREEDY | {"ckpt_dir": str(tuned.last_checkpoint), "val_dataset": [str(rows)], "result_dir": str(tmp_path)}
    one = infer(InferArguments(**options))
    batched = infer(InferArguments(**options, infer_batch_size=5))
    assert [result["response"] for result in one] == [result["response"] for result in batched]
    assert sum(result["response"] == f"answer {i}!" for i, result in enumerate(one)) >= 6
    assert "label" not in one[0]
    assert len(infer(InferArguments(**options, show_dataset_sample=3))) == 3


def test_the_same_through_plain_transformers(tuned, engine):
    """A server that knows only the checkpoint folder and its own chat template gives the same answer."""
    row = to_conversation({"query": "question 1"}, need_answer=False)
    (answer,) = engine.answer([row], Sampling(max_new_tokens=12))
    model = AutoModelForCausalLM.from_pretrained(str(tuned.last_checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(str(tuned.last_checkpoint))
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "question 1"}]
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True) == answer


def test_streamed_pieces_make_the_answer(engine):
    row = to_conversation({"query": "question 1"}, need_answer=False)
    (answer,) = engine.answer([row], Sampling(max_new_tokens=12))
    pieces = list(engine.stream(row, Sampling(max_new_tokens=12)))
    assert "".join(pieces) == answer
    assert len(pieces) > 1


def test_a_stream_that_is_closed_stops_the_generation(engine, monkeypatch):
    steps = []
    monkeypatch.setattr(type(engine.template), "stop_token_ids", property(lambda _: [5000]))  # it never stops by itself
    own = engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *a, **k: (steps.append(1), own(*a, **k))[1])
    stream = engine.stream(Conversation((Message("user", "zzz"),)), Sampling(max_new_tokens=1000, do_sample=True))
    next(stream)
    stream.close()
    assert len(steps) < 900
    assert not engine.model.training


def test_a_fault_while_streaming_reaches_the_caller(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "generate", lambda **_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        list(engine.stream(Conversation((Message("user", "a"),)), Sampling(max_new_tokens=3)))


def test_stop_words_of_several_tokens():
    from llmtune.inference.texts import StopWords

    def told(*pieces: str) -> list[str]:
        stops = StopWords(["STOP"])
        return [*(stops.add(piece) for piece in pieces), stops.rest()]

    assert told("one ST", "O", "P two") == ["one ", "", "", ""]
    assert told("one S", "ome") == ["one ", "Some", ""]
    assert told("a", "b ST") == ["a", "b ", "ST"]


def test_suffix_of_text_ends_an_answer(tuned):
    """A template whose stop is no single token: generation ends there all the same, and the text leaves it out."""
    from llmtune import TemplateInfo
    from llmtune.templates.chat import ChatTemplate

    model = AutoModelForCausalLM.from_pretrained(str(tuned.last_checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(str(tuned.last_checkpoint))
    chatml = get_template("chatml", tokenizer, system="be short")
    info = TemplateInfo(prefix=chatml.info.prefix, prompt=chatml.info.prompt, suffix=["swer 1"], chat_sep=None)
    template = ChatTemplate(info, tokenizer, name="odd", system="be short")
    row = Conversation((Message("user", "question 1"),))
    assert template.stop_strings == ["swer 1"]
    assert list(Engine(model, template).answer([row], Sampling(max_new_tokens=12))) == ["an"]
    assert "".join(Engine(model, template).stream(row, Sampling(max_new_tokens=12))) == "an"


def test_temperature_0_is_greedy():
    args = InferArguments(model_type="llmtune-tiny", temperature=0)
    assert Sampling.of(args).do_sample is False


def test_sampling_follows_the_seed(tuned, tmp_path):
    options = {
        "ckpt_dir": str(tuned.last_checkpoint),
        "max_new_tokens": 12,
        "temperature": 3.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    first, same, other = (
        [r["response"] for r in infer(InferArguments(**options, seed=seed, result_dir=str(tmp_path)))]
        for seed in (1, 1, 2)
    )
    assert first == same != other


# Talking


def talk(monkeypatch: pytest.MonkeyPatch, engine: Engine, lines: list[Any], **options: Any) -> list[dict[str, Any]]:
    typed = iter(lines)

    def read(_: str = "") -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    return chat_module.chat(engine, Sampling(max_new_tokens=12), **options)


def test_earlier_turns_are_the_history_until_clear(engine, monkeypatch, capsys):
    turns = talk(monkeypatch, engine, ["question 1", "", "question 2", "clear", "question 3", "EXIT", "never"])
    assert [turn["query"] for turn in turns] == ["question 1", "question 2", "question 3"]
    assert turns[0]["response"] == "answer 1!"
    assert [len(turn["history"]) for turn in turns] == [0, 1, 0]
    assert turns[1]["history"] == [["question 1", "answer 1!"]]
    assert "answer 1!\n" + "-" * 50 in capsys.readouterr().out


def test_chat_takes_several_lines_and_another_system_prompt(engine, monkeypatch):
    turns = talk(monkeypatch, engine, ["multi-line", "one", "two#", "single-line", "three"], stream=False)
    assert [turn["query"] for turn in turns] == ["one\ntwo", "three"]
    talk(monkeypatch, engine, ["system", "You are a cat."])
    assert engine.template.system == "You are a cat."


def test_ctrl_c_stops_the_answer_and_not_the_program(engine, monkeypatch, capsys):
    def interrupted(*_: Any, **__: Any):
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "stream", interrupted)
    turns = talk(monkeypatch, engine, [KeyboardInterrupt(), "question 1", "exit"])
    assert turns[0]["response"] == "half an"
    shown = capsys.readouterr().out
    assert "[stopped]" in shown
    assert "`exit` leaves." in shown


# Merging


@pytest.mark.medium
def test_merged_weights_generate_the_same(adapter):
    options = GREEDY | {"show_dataset_sample": 2, "dataset": ["tiny-qa"]}
    before = infer(InferArguments(ckpt_dir=str(adapter.last_checkpoint), **options))
    after = infer(InferArguments(ckpt_dir=str(adapter.last_checkpoint), merge_lora_and_save=True, **options))
    assert [r["response"] for r in before] == [r["response"] for r in after]
    merged = adapter.last_checkpoint.with_name("checkpoint-6-merged")
    model = AutoModelForCausalLM.from_pretrained(str(merged))
    AutoTokenizer.from_pretrained(str(merged))
    assert (merged / "generation_config.json").is_file()
    base = AutoModelForCausalLM.from_pretrained(json.loads((merged / "sft_args.json").read_text())["model_id_or_path"])
    ids = torch.arange(3, 20)[None]
    assert not torch.allclose(model(ids).logits, base(ids).logits)
    again = infer(InferArguments(ckpt_dir=str(merged), **options))
    assert [r["response"] for r in again] == [r["response"] for r in before]
    with pytest.raises(OutputError, match="exists already"):
        infer(InferArguments(ckpt_dir=str(adapter.last_checkpoint), merge_lora_and_save=True, **options))


def test_a_wrong_merge_is_refused(adapter, monkeypatch, tmp_path):
    from llmtune.merging import in_memory as merge

    engine = load_engine(InferArguments(ckpt_dir=str(adapter.last_checkpoint), eval_human=True))
    monkeypatch.setattr(merge, "merged_folder", lambda _: tmp_path / "merged")
    own = engine.model.merge_and_unload

    def wrong() -> Any:
        model = own()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
        return model

    monkeypatch.setattr(engine.model, "merge_and_unload", wrong)
    with pytest.raises(CheckpointError, match="failed its check"):
        merge.merge_and_save(engine.model, engine.tokenizer, adapter.last_checkpoint)
    assert not list(tmp_path.iterdir())


def test_an_adapter_in_its_initial_state_is_not_merged(tmp_path, monkeypatch):
    found = sft(
        SftArguments(
            model_type="llmtune-tiny", dataset=["tiny-qa#8"], max_steps=1, output_dir=str(tmp_path), warmup_ratio=1.0,
            eval_strategy="no", report_to=["none"],
        )
    )  # fmt: skip
    engine = load_engine(InferArguments(ckpt_dir=str(found.last_checkpoint), eval_human=True))
    from llmtune.merging.in_memory import merge_and_save

    with pytest.raises(CheckpointError, match="changes nothing"):
        merge_and_save(engine.model, engine.tokenizer, found.last_checkpoint)


# Bad input


def test_a_wrong_checkpoint_folder_suggests_the_right_one(tmp_path, tuned, adapter):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        InferArguments(ckpt_dir=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="incomplete"):
        InferArguments(ckpt_dir=str(tmp_path))
    folder = tmp_path / "runs"
    (folder / "v0" / "checkpoint-4").mkdir(parents=True)
    (folder / "v0" / "checkpoint-10").mkdir()
    with pytest.raises(CheckpointError, match=r"Did you mean .*v0/checkpoint-10"):
        InferArguments(ckpt_dir=str(folder))


def test_the_folder_of_a_run_means_its_best_checkpoint_else_its_last(tuned, tmp_path, capsys):
    run = Path(shutil.copytree(tuned.output_dir, tmp_path / "run"))
    found = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    best = tuned.best_checkpoint
    assert InferArguments(ckpt_dir=str(run)).ckpt_dir == str(run / (best or found[-1]).name)
    for name, said in (("checkpoint-1", "last"), (found[0].name, "best")):
        state = json.loads((found[-1] / "trainer_state.json").read_text())
        state["best_model_checkpoint"] = f"/another/machine/{name}"
        (found[-1] / "trainer_state.json").write_text(json.dumps(state))
        expected = found[-1] if said == "last" else found[0]
        assert InferArguments(ckpt_dir=str(run)).ckpt_dir == str(expected)
        assert f"using its {said} checkpoint, {expected.name}" in capsys.readouterr().err


def copy_of(checkpoint: Path, target: Path) -> Path:
    target.mkdir()
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_truncated_weights_are_an_error(tmp_path, tuned, adapter):
    from llmtune.errors import ModelError

    whole = copy_of(tuned.last_checkpoint, tmp_path / "full")
    (whole / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        infer(InferArguments(ckpt_dir=str(whole), **GREEDY))
    (whole / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        infer(InferArguments(ckpt_dir=str(whole), **GREEDY))
    (whole / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="--allow_pickle true"):
        infer(InferArguments(ckpt_dir=str(whole), **GREEDY))
    part = copy_of(adapter.last_checkpoint, tmp_path / "lora")
    (part / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="so it is incomplete"):
        infer(InferArguments(ckpt_dir=str(part), **GREEDY))


def test_an_adapter_of_another_model(tmp_path, adapter):
    other = copy_of(adapter.last_checkpoint, tmp_path / "other")
    config = json.loads((tiny_folder() / "config.json").read_text())
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = Qwen2Config(**(config | {"hidden_size": 96, "num_hidden_layers": 2}))
    Qwen2ForCausalLM(small).save_pretrained(str(tmp_path / "small"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        infer(InferArguments(ckpt_dir=str(other), model_id_or_path=str(tmp_path / "small"), **GREEDY))


def test_no_rows_to_answer_is_an_error(tuned, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "a", "response": "b"}\n')
    with pytest.raises(DataError, match="--val_dataset"):
        infer(InferArguments(ckpt_dir=str(tuned.last_checkpoint), dataset=[str(rows)]))
    whole = InferArguments(
        ckpt_dir=str(tuned.last_checkpoint),
        dataset=[str(rows)],
        dataset_test_ratio=1,
        result_dir=str(tmp_path),
        **GREEDY,
    )
    assert len(infer(whole)) == 1


def test_merging_needs_a_checkpoint():
    with pytest.raises(UsageError, match="--ckpt_dir"):
        InferArguments(model_type="llmtune-tiny", merge_lora_and_save=True)


def test_a_flag_without_effect_warns():
    """A given dataset is answered whole; --show_dataset_sample says how much of it."""
    args = InferArguments(model_type="llmtune-tiny", val_dataset=["tiny-qa"], val_dataset_sample=2)
    assert args.unused == ["--val_dataset_sample"]
