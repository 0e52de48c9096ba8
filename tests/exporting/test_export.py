"""Checkpoints for elsewhere: GGUF with an Ollama Modelfile, GPTQ, bitsandbytes, model cards."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmtune import ExportArguments, InferArguments, SftArguments, TemplateInfo, export, get_template, sft
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, MissingPackageError, ModelError, OutputError, UsageError
from llmtune.exporting import gguf_families
from llmtune.exporting.ollama import added_text, go_template, why_not
from llmtune.inference.load import load_engine
from llmtune.inference.sampling import Sampling
from llmtune.models.tiny import tiny_folder
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.types import Conversation, Message

TEXTS = ["How much is 12 plus 345?", "它們 don't  know\n\n\tthat 🙂!", "<|im_start|>user\nhello<|im_end|>\n"]
SMALL: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    found = sft(
        SftArguments(
            model_type="llmtune-tiny", dataset=["tiny-qa#64"], lora_target_modules=["ALL"], batch_size=8,
            gradient_accumulation_steps=1, max_steps=4, eval_steps=4, learning_rate=1e-2, val_dataset_sample=16,
            output_dir=str(folder), report_to=["none"], system="Be brief.",
        )
    )  # fmt: skip
    assert found.last_checkpoint is not None
    return Path(found.last_checkpoint)


def make(folder: Path, kind: str, **changes: Any) -> Path:
    shutil.copytree(tiny_folder(), folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | changes)))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # biases and norms too: they are zeros and ones
    model.save_pretrained(folder)
    return folder


def arguments(checkpoint: Path, target: Path, **options: Any) -> ExportArguments:
    return ExportArguments(ckpt_dir=str(checkpoint), output_dir=str(target), **options)


# GGUF


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
        ("mistral", {"tie_word_embeddings": False, "sliding_window": None}),
    ],
)
def test_gguf_logits_equal_for_each_family(tmp_path, kind, changes):
    """What is compared inside, logits of the folder and of the file, is compared here once more, from outside."""
    pytest.importorskip("gguf")
    folder = make(tmp_path / "model", kind, **changes)
    options = {"model_type": "auto", "model_id_or_path": str(folder), "template_type": "chatml", "to": "gguf"}
    made = export(arguments(folder, tmp_path / "gguf", gguf_type="f32", **options))
    config = AutoConfig.from_pretrained(folder)
    if kind == "mistral":  # llama.cpp has it as a Llama
        config = AutoConfig.from_pretrained(made, gguf_file="model.gguf")
    read = AutoModelForCausalLM.from_pretrained(made, gguf_file="model.gguf", config=config, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(read(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_wrong_order_of_rows_is_found(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    folder = make(tmp_path / "model", "llama")
    wrong = gguf_families.Family("llama", permutes=False, is_read_back=True)
    monkeypatch.setitem(gguf_families.FAMILIES, "LlamaForCausalLM", wrong)
    options = {"model_type": "auto", "model_id_or_path": str(folder), "template_type": "chatml", "to": "gguf"}
    with pytest.raises(CheckpointError, match="failed its check"):
        export(arguments(folder, tmp_path / "gguf", **options))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.medium
@pytest.mark.parametrize("gguf_type", ["f16", "bf16", "q8_0"])
def test_an_adapter_to_gguf(adapter, tmp_path, gguf_type, capfd):
    gguf = pytest.importorskip("gguf")
    made = export(arguments(adapter, tmp_path / "gguf", to="gguf", gguf_type=gguf_type))
    assert sorted(path.name for path in made.iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    assert [path.name for path in tmp_path.iterdir()] == ["gguf"], "what was merged on the way is gone"
    assert "logits differ by" in capfd.readouterr().err
    reader = gguf.GGUFReader(made / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == gguf_type.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    own = AutoTokenizer.from_pretrained(adapter)
    assert fields["tokenizer.chat_template"] == own.chat_template
    assert fields["tokenizer.ggml.eos_token_id"] == own.eos_token_id
    assert fields["tokenizer.ggml.token_type"][own.convert_tokens_to_ids("<|im_start|>")] == gguf.TokenType.CONTROL
    read = AutoTokenizer.from_pretrained(made, gguf_file="model.gguf")
    for text in TEXTS:
        assert read(text, add_special_tokens=False)["input_ids"] == own(text, add_special_tokens=False)["input_ids"]
    modelfile = (made / "Modelfile").read_text()
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert 'SYSTEM """Be brief."""' in modelfile
    with pytest.raises(OutputError, match="exists already"):
        export(arguments(adapter, tmp_path / "gguf", to="gguf"))


@pytest.mark.slow
def test_a_tokenizer_of_sentencepiece(assets, tmp_path):
    """Llama 2's own: tokenizer.json has no scores, tokenizer.model has them."""
    gguf = pytest.importorskip("gguf")
    folder = make(tmp_path / "model", "llama", vocab_size=32016)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    own = AutoTokenizer.from_pretrained(assets / "tokenizers/llama2")
    own.add_tokens(["<cough>"])
    own.save_pretrained(folder)
    assert not (folder / "tokenizer.model").exists()
    options = {"model_type": "auto", "model_id_or_path": str(folder), "template_type": "llama", "to": "gguf"}
    with pytest.raises(ModelError, match=r"no tokenizer\.model"):
        export(arguments(folder, tmp_path / "gguf", **options))
    shutil.copy(assets / "tokenizers/llama2/tokenizer.model", folder)
    made = export(arguments(folder, tmp_path / "gguf", **options))
    fields = {name: field.contents() for name, field in gguf.GGUFReader(made / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_bos_token"] is (own("a")["input_ids"][0] == own.bos_token_id)
    assert fields["tokenizer.ggml.tokens"][32000:32002] == ["<cough>", "[PAD32001]"]
    assert fields["tokenizer.ggml.scores"][260:263] == [-1.0, -2.0, -3.0]
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    adds_blank = own.tokenize("a")[0] == "\u2581a"
    assert fields["tokenizer.ggml.add_space_prefix"] is adds_blank


def test_other_families_are_referred_to_llama_cpp(tmp_path, adapter, monkeypatch):
    folder = make(tmp_path / "other-family", "gpt_neox")
    options = {"model_type": "auto", "model_id_or_path": str(folder), "template_type": "chatml", "to": "gguf"}
    with pytest.raises(ModelError, match=r"GPTNeoXForCausalLM is none of.*convert_hf_to_gguf\.py.*--llama_cpp DIR"):
        export(arguments(folder, tmp_path / "gguf", **options))
    tokenizer = json.loads((tiny_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    other = make(tmp_path / "other", "qwen2")
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="its pre-tokeniser has no name"):
        export(arguments(other, tmp_path / "gguf", **(options | {"model_id_or_path": str(other)})))
    with pytest.raises(UsageError, match=r"no convert_hf_to_gguf\.py"):
        export(arguments(folder, tmp_path / "gguf", **options, llama_cpp=str(tmp_path)))
    script = tmp_path / "llama.cpp/convert_hf_to_gguf.py"
    script.parent.mkdir()
    script.write_text("import sys; open(sys.argv[3], 'w').write(' '.join(sys.argv[2::2] + sys.argv[5:]))")
    made = export(arguments(folder, tmp_path / "gguf", **options, llama_cpp=str(script.parent), gguf_type="bf16"))
    assert (made / "model.gguf").read_text().startswith("--outfile --outtype bf16")
    script.write_text("raise SystemExit('no such model')")
    with pytest.raises(ModelError, match="no such model"):
        export(arguments(folder, tmp_path / "again", **options, llama_cpp=str(script.parent)))
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'llmtune\[gguf\]'"):
        export(arguments(adapter, tmp_path / "again", to="gguf"))


# Ollama


def go(template: str, system: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of it: of its language, what the templates here are written in."""
    parts = re.split(r"(\{\{.*?\}\})", template)

    def run(at: int, this: dict[str, str], live: bool) -> tuple[str, int, str]:
        out = ""
        while at < len(parts):
            part = parts[at]
            at += 1
            if not part.startswith("{{"):
                out += part if live else ""
                continue
            action = part[2:-2].strip()
            if action == '"{{"':
                out += "{{" if live else ""
            elif action in (".System", ".Content"):
                out += (system if action == ".System" else this["Content"]) if live else ""
            elif action == "range .Messages":
                end = at
                for message in messages:
                    text, end, _ = run(at, message, live)
                    out += text
                if not messages:
                    _, end, _ = run(at, {}, False)
                at = end
            elif action.startswith("if "):
                done = False
                while action.startswith(("if ", "else")):
                    condition = action.removeprefix("else").strip().removeprefix("if ").strip()
                    holds = not done and (not condition or _holds(condition, system, this))
                    text, at, action = run(at, this, live and holds)
                    out += text
                    done = done or holds
            elif action == "end" or action.startswith("else"):
                return out, at, action
            else:
                raise AssertionError(f"not understood: {action}")
        return out, at, ""

    return run(0, {}, True)[0]


def _holds(condition: str, system: str, this: dict[str, str]) -> bool:
    if condition == ".System":
        return bool(system)
    found = re.fullmatch(r'eq \.Role "(\w+)"', condition)
    assert found is not None, condition
    return this["Role"] == found[1]


FITTING = [name for name in TEMPLATE_MAPPING if not why_not(TEMPLATE_MAPPING[name])]


@pytest.mark.parametrize("name", FITTING)
def test_go_templates_write_what_was_trained(name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.bos_token = "<|im_start|>"
    info = TEMPLATE_MAPPING[name]
    ours = get_template(name, tokenizer)
    turns = [("user", "a {{ .X }} b"), ("assistant", "yes"), ("user", "and\nthen?"), ("assistant", "no"), ("user", "?")]
    for count in (1, 3, 5):
        for system in ("", "Be brief.") if info.has_system_slot else ("",):
            if not system and info.default_system:
                continue  # the Modelfile's SYSTEM takes its place
            first = (Message("system", system),) if system else ()
            row = Conversation((*first, *(Message(role, text) for role, text in turns[:count])))
            messages = [{"Role": role, "Content": text} for role, text in turns[:count]]
            if system:
                messages.insert(0, {"Role": "system", "Content": system})
            assert go(go_template(info, tokenizer), system, messages) == ours.render(row, generation=True)


def test_the_first_token_is_not_written_twice(assets):
    tokenizer = AutoTokenizer.from_pretrained(assets / "tokenizers/llama3_1")
    info = TEMPLATE_MAPPING["llama3"]
    assert added_text(tokenizer) == "<|begin_of_text|>", "llama.cpp adds it, as the tokenizer does"
    row = Conversation((Message("system", "Be brief."), Message("user", "hello")))
    messages = [{"Role": "system", "Content": "Be brief."}, {"Role": "user", "Content": "hello"}]
    text = go(go_template(info, tokenizer, added_text(tokenizer)), "Be brief.", messages)
    assert "<|begin_of_text|>" + text == get_template("llama3", tokenizer).render(row, generation=True)
    assert added_text(AutoTokenizer.from_pretrained(tiny_folder())) == ""


def test_templates_that_go_cannot_say():
    assert {"chatml", "llama3", "yi"} <= set(FITTING)
    assert len(FITTING) > 8
    assert why_not(TemplateInfo(prompt=["[{{ROUND}}] {{QUERY}}"], chat_sep=["\n"])) == "counts the rounds"
    assert "last question" in why_not(TemplateInfo(prompt=["{{SYSTEM}}", "{{QUERY}}"], chat_sep=["\n"]))
    assert why_not(TemplateInfo(prompt=["{{QUERY}}"])) == "supports one turn only"


# Weights in few bits


def _proven(made: Path) -> dict[str, Any]:
    report = json.loads((made / "quantization.json").read_text())
    assert report["rows"] > 0
    assert abs(report["loss_after"] - report["loss_before"]) < 1
    engine = load_engine(InferArguments(ckpt_dir=str(made), eval_human=True))
    rows = [Conversation((Message("user", "How much is 1 plus 1?"),))]
    assert isinstance(next(engine.answer(rows, Sampling(max_new_tokens=4))), str)
    assert "quantization_config" in json.loads((made / "config.json").read_text())
    return report


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bitsandbytes_folder_is_complete_and_measured(adapter, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    made = export(arguments(adapter, tmp_path / "bnb", quant_method="bnb", quantization_bit=bits))
    report = _proven(made)
    assert (report["quant_method"], report["bits"]) == ("bnb", bits)
    assert [path.name for path in tmp_path.iterdir()] == ["bnb"]
    for name in ("tokenizer.json", "generation_config.json"):
        assert (made / name).read_bytes() == (adapter / name).read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        export(arguments(adapter, tmp_path / "bnb", quant_method="bnb"))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_gptq_folder_is_complete_and_measured(adapter, tmp_path, bits, capfd, monkeypatch):
    pytest.importorskip("gptqmodel")
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"How much is {n} plus 1?", "response": f"{n} plus 1 is {n + 1}."} for n in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    options = {"calibration_dataset": [str(tmp_path / "rows.json")], "num_calibration_samples": 6, "group_size": 32}
    made = export(arguments(adapter, tmp_path / "gptq", quant_method="gptq", quantization_bit=bits, **options))
    report = _proven(made)
    assert (report["bits"], report["group_size"], report["calibration_rows"]) == (bits, 32, 6)
    with safe_open(made / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.mlp.up_proj.qweight" in file.keys()  # noqa: SIM118
    assert capfd.readouterr().out == "", "results alone"
    assert not (tmp_path / "logs").exists()


def test_gptq_without_its_package_or_data(adapter, tmp_path, monkeypatch):
    from llmtune.exporting import quantize

    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="gptqmodel"):
        export(arguments(adapter, tmp_path / "gptq", quant_method="gptq"))
    with pytest.raises(MissingPackageError, match="bitsandbytes"):
        export(arguments(adapter, tmp_path / "bnb", quant_method="bnb"))
    assert not list(tmp_path.iterdir())


# Cards, flags


def test_the_model_card_has_data_and_scores(adapter, tmp_path):
    (adapter.parent / "eval").mkdir(exist_ok=True)
    scores = {"base": {"loss": 7.5}, adapter.name: {"loss": 5.25, "rouge-l": 11.0}}
    (adapter.parent / "eval/summary.json").write_text(json.dumps(scores))
    made = export(arguments(adapter, tmp_path / "merged", merge_lora=True))
    card = (made / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "text-generation"
    assert not {"base_model", "license"} & set(head), "the embedded model is on no hub"
    for said in ("| base model | llmtune-tiny |", "| data | tiny-qa |", "| system prompt | Be brief. |", "5.2500"):
        assert said in card
    assert "| `--learning_rate` | 0.01 |" in card
    assert "| steps | 4 |" in card
    for place in (str(adapter.parent), str(Path.home()), str(tmp_path), sys.prefix):
        assert place not in card
    shutil.rmtree(adapter.parent / "eval")


def test_a_dry_run_warns_of_flags_without_effect(adapter, tmp_path, capsys):
    target = str(tmp_path / "out")
    flags = ["--ckpt_dir", str(adapter), "--output_dir", target]
    assert main(["export", *flags, "--merge_lora", "true", "--group_size", "64", "--dry_run", "true"]) == 0
    shown = capsys.readouterr().out
    assert target in shown
    assert "no effect here: --group_size" in shown
    assert not Path(target).exists()
    assert main(["export", *flags]) == 2
    assert "Choose what to export" in capsys.readouterr().err
    assert main(["export", *flags, "--quantization_bit", "4", "--merge_lora", "true"]) == 2
    assert main(["export", *flags, "--format", "gguf", "--quant_method", "bnb"]) == 2
    assert main(["export", "--merge_lora", "true"]) == 2
    assert ExportArguments(ckpt_dir=str(adapter), quant_method="gptq").target().name == f"{adapter.name}-gptq-int4"


@pytest.mark.medium
def test_a_qlora_checkpoint_becomes_whole_weights(adapter, tmp_path):
    """Its base was read in 4 bits while it was trained; what is merged is the base as it lies on the disk."""
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(adapter, checkpoint)
    saved = json.loads((checkpoint / "sft_args.json").read_text())
    (checkpoint / "sft_args.json").write_text(json.dumps(saved | {"quantization_bit": 4, "quant_method": "bnb"}))
    for options in ({"merge_lora": True}, {"quant_method": "bnb", "quantization_bit": 8}):
        made = export(ExportArguments(ckpt_dir=str(checkpoint), **options))
        assert made.parent == tmp_path
        assert json.loads((made / "sft_args.json").read_text())["quantization_bit"] == 0
        engine = load_engine(InferArguments(ckpt_dir=str(made), eval_human=True))
        assert hasattr(engine.model.config, "quantization_config") is ("quant_method" in options)


def test_whole_weights_are_not_merged(capsys):
    assert (
        main(["export", "--ckpt_dir", str(tiny_folder()), "--model_type", "llmtune-tiny", "--merge_lora", "true"]) == 2
    )
    said = capsys.readouterr()
    assert "nothing to merge" in said.err
    assert "Exported" not in said.err + said.out
