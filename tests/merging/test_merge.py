"""Merging tensor by tensor: against PEFT's own merging in memory, kind by kind, and within its memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llmtune import InferArguments
from llmtune.arguments.export import MergeArguments
from llmtune.cli.main import main
from llmtune.errors import CheckpointError, OutputError, UsageError
from llmtune.exporting.export import merge
from llmtune.merging import merge as merge_module
from llmtune.models.info import register_model
from llmtune.models.tiny import tiny_folder
from llmtune.tuners.vocabulary import grow_vocabulary

IDS = torch.arange(3, 40)[None]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MOE: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8}
SMALL: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 256, "num_experts_per_tok": 2, "pad_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip


def make_base(folder: Path, kind: str = "qwen3", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    shutil.copytree(tiny_folder(), folder)
    config = AutoConfig.for_model(kind, **(SMALL | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=not (folder / "model.safetensors.index.json").is_file())
    return folder


def make_adapter(base: Path, folder: Path, config: Any, num_rows: int = 0) -> Path:
    """Trained, as far as anyone can tell: all that an adapter may change is drawn by chance."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if num_rows:
        grow_vocabulary(model, num_rows)
    torch.manual_seed(1)
    tuned = get_peft_model(model, config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def merged_in_memory(base: Path, adapter: Path, num_rows: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    if num_rows:
        grow_vocabulary(model, num_rows)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def add_record(adapter: Path) -> dict[str, Any]:
    """The record of the run that trained it; what that of the merged model has to be."""
    record = {"sft_type": "lora", "quantization_bit": 4, "system": "be short", "template_type": "chatml"}
    (adapter / "sft_args.json").write_text(json.dumps(record))
    return record | {"sft_type": "full", "quantization_bit": 0}


def arguments(adapter: Path, base: Path, target: Path, **changes: Any) -> MergeArguments:
    return MergeArguments(
        ckpt_dir=str(adapter), model_id_or_path=str(base), output_dir=str(target), model_type="auto",
        template_type="chatml", **changes,
    )  # fmt: skip


def assert_like(merged: Path, expected: Any) -> None:
    found = AutoModelForCausalLM.from_pretrained(merged)
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


KINDS: dict[str, Any] = {
    "plain": LoraConfig(r=4, target_modules=LINEAR),
    "rslora and patterns": LoraConfig(
        r=4, use_rslora=True, target_modules=LINEAR, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 32}
    ),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "down_proj"]),
    "biases": LoraConfig(r=4, bias="all", target_modules=["q_proj"]),
    "head": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "some tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 77]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], save_projection=True),
}


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may fall back to memory."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("merged in memory")

    monkeypatch.setattr(merge_module, "_merge_in_memory", refuse)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, False) for kind in KINDS), ("plain", True), ("head", True), ("some tokens", True)]
)
def test_the_same_as_in_memory(tmp_path, kind, tied):
    base = make_base(tmp_path / "base", "qwen2", tie_word_embeddings=tied)
    adapter = make_adapter(base, tmp_path / "adapter", KINDS[kind].__class__(**KINDS[kind].to_dict()))
    record = add_record(adapter)
    merged = merge(arguments(adapter, base, tmp_path / "merged", max_shard_size="100KB"))
    assert merged == tmp_path / "merged"
    assert_like(merged, merged_in_memory(base, adapter))
    sizes = [file.stat().st_size for file in merged.glob("*.safetensors")]
    assert len(sizes) > 1
    assert json.loads((merged / "sft_args.json").read_text()) == record
    config = json.loads((merged / "config.json").read_text())
    assert config["tie_word_embeddings"] is (tied and kind != "head")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.usefixtures("streamed")
def test_a_tied_head_is_written_when_the_embedding_alone_was_trained(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    merged = merge(arguments(adapter, base, tmp_path / "merged"))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    found = AutoModelForCausalLM.from_pretrained(merged)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(found(IDS).logits, tuned(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_lie_apart_in_files_and_fused_in_memory(tmp_path, kind):
    changes = {"num_local_experts": 4} if kind == "mixtral" else MOE
    base = make_base(tmp_path / "base", kind, **changes)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    )
    adapter = make_adapter(base, tmp_path / "adapter", config)
    merged = merge(arguments(adapter, base, tmp_path / "merged"))
    assert_like(merged, merged_in_memory(base, adapter))
    names = {name for file in base.glob("*.safetensors") for name in load_file(file)}
    assert {name for file in merged.glob("*.safetensors") for name in load_file(file)} == names
    assert any(".experts.3." in name for name in names)


@pytest.mark.usefixtures("streamed")
def test_weights_that_lie_the_other_way_round(tmp_path):
    """GPT-2's Conv1D holds [in, out]."""
    base = make_base(tmp_path / "base", "gpt2", n_embd=32, n_layer=2, n_head=4)
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    merged = merge(arguments(adapter, base, tmp_path / "merged"))
    assert_like(merged, merged_in_memory(base, adapter))


@pytest.mark.usefixtures("streamed")
def test_half_precision_is_rounded_once(tmp_path):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    merged = merge(arguments(adapter, base, tmp_path / "merged"))
    found = AutoModelForCausalLM.from_pretrained(merged)
    assert found.dtype is torch.bfloat16, "that of the base"
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload().to(torch.bfloat16)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    other = merge(arguments(adapter, base, tmp_path / "fp32", dtype="fp32"))
    assert json.loads((other / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.usefixtures("streamed")
def test_new_tokens_are_merged_into_the_embedding(tmp_path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[2048, 2049])
    adapter = make_adapter(base, tmp_path / "adapter", config, num_rows=2050)
    merged = merge(arguments(adapter, base, tmp_path / "merged"))
    assert json.loads((merged / "config.json").read_text())["vocab_size"] == 2050
    found = AutoModelForCausalLM.from_pretrained(merged)
    tuned = merged_in_memory(base, adapter, num_rows=2050)
    torch.testing.assert_close(found(IDS).logits, tuned(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("streamed")
def test_resized_embeddings_are_merged(tmp_path):
    """As MedicalGPT's trainers leave them: a longer tokenizer, and the whole embedding in the adapter's file."""
    base = make_base(tmp_path / "base", tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<cough>", "<fever>"])
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapter = make_adapter(base, tmp_path / "adapter", config, num_rows=2050)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer_id_or_path": str(tmp_path / "tokenizer")}
    with pytest.raises(CheckpointError, match=r"does not fit the model: was it trained on another.*--resize_emb true"):
        merge(arguments(adapter, base, tmp_path / "merged", **options))
    assert not (tmp_path / "merged").exists()
    merged = merge(arguments(adapter, base, tmp_path / "merged", resize_emb=True, **options))
    assert_like(merged, merged_in_memory(base, adapter, num_rows=2050))
    assert len(AutoTokenizer.from_pretrained(merged)) == 2050


def test_pickled_bases_and_refusals(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    expected = merged_in_memory(base, adapter)
    whole = {name: value for file in base.glob("*.safetensors") for name, value in load_file(file).items()}
    for file in base.glob("model*"):
        file.unlink()
    torch.save(whole, base / "pytorch_model.bin")
    merged = merge(arguments(adapter, base, tmp_path / "merged", allow_pickle=True))
    assert_like(merged, expected)
    with pytest.raises(OutputError, match="exists already"):
        merge(arguments(adapter, base, merged, allow_pickle=True))
    with pytest.raises(UsageError, match="max_shard_size"):
        merge(arguments(adapter, base, tmp_path / "other", max_shard_size="big"))
    with pytest.raises(CheckpointError, match="nothing to merge"):
        merge(arguments(merged, base, tmp_path / "other"))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="changes nothing"):
        merge(arguments(adapter, base, tmp_path / "other", allow_pickle=True))
    save_file({f"{name}x": value for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        merge(arguments(adapter, base, tmp_path / "other", allow_pickle=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_a_wrong_sum_is_found(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    own = merge_module._Streamed._merged

    def wrong(self: Any, wrapper: Any) -> dict[str, torch.Tensor]:
        return {name: 1.3 * value for name, value in own(self, wrapper).items()}

    monkeypatch.setattr(merge_module._Streamed, "_merged", wrong)
    with pytest.raises(CheckpointError, match="failed its check"):
        merge(arguments(adapter, base, tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_other_adapters_are_merged_in_memory(tmp_path, capfd):
    def load(folder: str, *, load_model: bool = True, load_tokenizer: bool = True, **options: Any) -> Any:
        from llmtune.models.loading import load_causal_lm

        return load_causal_lm(folder, load_model=load_model, load_tokenizer=load_tokenizer, **options)

    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    register_model("of-my-own", model_id_or_path=str(base), template="chatml", get_function=load)
    record = add_record(adapter)
    args = InferArguments(ckpt_dir=str(adapter), model_type="of-my-own", eval_human=True, load_args_from_ckpt_dir=False)
    merged = merge_module.merge_checkpoint(args, tmp_path / "merged")
    assert json.loads((merged / "sft_args.json").read_text()) == record
    assert "of-my-own has its own loading function" in capfd.readouterr().err
    assert_like(merged, merged_in_memory(base, adapter))
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"])
    adapter = make_adapter(base, tmp_path / "adalora", config)
    merged = merge(arguments(adapter, base, tmp_path / "merged-adalora"))
    assert "ranknum.default of its adapters is not in their file" in capfd.readouterr().err
    assert_like(merged, merged_in_memory(base, adapter))


def test_the_command_with_medicalgpts_flags(tmp_path, capsys):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    flags = ["--model_type", "auto", "--base_model", str(base), "--lora_model", str(adapter), "--tokenizer_path"]
    flags += [str(base), "--output_dir", str(tmp_path / "merged")]
    assert main(["merge", *flags, "--dry_run", "true"]) == 0
    assert str(base) in capsys.readouterr().out
    assert not (tmp_path / "merged").exists()
    assert main(["merge", *flags]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "merged")
    assert_like(tmp_path / "merged", merged_in_memory(base, adapter))
    assert main(["merge", *flags]) == 1
    assert main(["merge"]) == 2


MEASURED = """
import sys, threading, time
from pathlib import Path
from llmtune import InferArguments
from llmtune.merging.merge import merge_checkpoint
import peft, transformers  # noqa: F401

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

highest, start, done = 0, held(), False
def watch():
    global highest
    while not done:
        highest = max(highest, held())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
args = InferArguments(
    ckpt_dir=sys.argv[1], model_id_or_path=sys.argv[2], model_type="auto", template_type="chatml", eval_human=True
)
merge_checkpoint(args, Path(sys.argv[3]), max_shard_size="16MB")
done = True; thread.join()
print((highest - start) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_that_of_a_layer_and_a_shard(tmp_path):
    base = make_base(
        tmp_path / "base", hidden_size=1024, intermediate_size=4096, num_hidden_layers=10, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 2**20
    assert size > 600
    adapter = make_adapter(base, tmp_path / "adapter", LoraConfig(r=4, target_modules=LINEAR))
    command = [sys.executable, "-c", MEASURED, str(adapter), str(base), str(tmp_path / "merged")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < size / 3, "MiB held beyond the start"


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("family", ["qwen_v1", "chatglm2_6b", "baichuan_13b_v1", "baichuan2_7b", "internlm_v1_7b"])
def test_checkpoints_of_2023_are_merged_on_their_native_class(assets, tmp_path, family):
    """Their tensors are renamed and split on the way; ALiBi and normalised heads are classes of ours."""
    from llmtune.models.ports import causal_lm_loader

    base = tmp_path / "base"
    shutil.copytree(assets / "oracles" / family, base)
    for file in base.iterdir():
        file.chmod(0o644)
    loader = causal_lm_loader(base)
    torch.manual_seed(1)
    tuned = get_peft_model(loader.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    for file in tiny_folder().glob("tokenizer*"):
        shutil.copy(file, tmp_path / "adapter" / file.name)
    merged = merge(arguments(tmp_path / "adapter", base, tmp_path / "merged", allow_pickle=True))
    expected = PeftModel.from_pretrained(loader.from_pretrained(base), str(tmp_path / "adapter")).merge_and_unload()
    found = causal_lm_loader(merged).from_pretrained(merged)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-2, atol=1e-2, msg=name)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", ["qwen2.5-vl", "llava"])
def test_vision_models_are_merged(vision_folder, tmp_path, kind):
    from transformers import AutoModelForImageTextToText

    base = vision_folder(kind)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    tuned = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    key = {"qwen2.5-vl": "qwen2.5-vl-3b-instruct", "llava": "llava-1.5-7b-hf"}[kind]
    args = InferArguments(
        ckpt_dir=str(tmp_path / "adapter"), model_type=key, model_id_or_path=str(base), dtype="fp32", eval_human=True
    )
    merged = merge_module.merge_checkpoint(args, tmp_path / "merged")
    whole = AutoModelForImageTextToText.from_pretrained(base)
    expected = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    found = AutoModelForImageTextToText.from_pretrained(merged).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    names = {name for file in base.glob("*.safetensors") for name in load_file(file)}
    assert {name for file in merged.glob("*.safetensors") for name in load_file(file)} == names
    for file in base.glob("*processor_config.json"):
        assert (merged / file.name).read_bytes() == file.read_bytes()
