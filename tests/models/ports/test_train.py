"""A checkpoint of 2023 goes the whole way: `sft` under its key from its original folder, then `infer`."""

from __future__ import annotations

import json
import shutil

import pytest

from llmtune.arguments.infer import InferArguments
from llmtune.arguments.stage import SftArguments
from llmtune.inference.infer import infer
from llmtune.models.tiny import tiny_folder
from llmtune.stages.sft import sft

NATIVE = {
    ("qwen_v1", "qwen-7b-chat"): ["q_proj", "k_proj", "v_proj"],
    ("baichuan_13b_v1", "baichuan-13b-chat"): ["q_proj", "k_proj", "v_proj"],
    ("chatglm2_6b", "chatglm2-6b"): ["q_proj", "k_proj", "v_proj"],
    ("internlm_v1_7b", "internlm-7b-chat"): ["q_proj", "k_proj", "v_proj"],
}


def small_tokenizer(folder, size: int) -> None:
    """The embedded tokenizer, cut to the fixture's vocabulary: its first ids are control tokens and bytes."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    described = json.loads((tiny_folder() / "tokenizer.json").read_text())
    vocabulary = {token: index for token, index in described["model"]["vocab"].items() if index < size}
    described["model"] |= {"vocab": vocabulary, "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps(described))
    assert isinstance(tokenizer.model, models.BPE)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)


@pytest.mark.parametrize(("family", "key"), NATIVE, ids=lambda value: value)
def test_a_ported_model_trains_and_generates(assets, tmp_path, family, key, capsys):
    folder = tmp_path / "original"
    shutil.copytree(assets / "oracles" / family, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tokenizer_class", None)
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config))
    small_tokenizer(tmp_path / "tokenizer", config.get("vocab_size") or config["padded_vocab_size"])
    common = {"tokenizer_id_or_path": str(tmp_path / "tokenizer"), "template_type": "chatml"}
    result = sft(SftArguments(
        model_type=key, model_id_or_path=str(folder), dataset=["self-intro#40"], max_steps=3, batch_size=2,
        gradient_accumulation_steps=1, learning_rate=1e-2, logging_steps=1, max_length=200,
        output_dir=str(tmp_path / "output"), model_name=["A"], model_author=["B"], **common,
    ))  # fmt: skip
    said = capsys.readouterr().err
    assert f"are {', '.join(NATIVE[family, key])} here" in said or family == "internlm_v1_7b"
    adapter = json.loads((result.last_checkpoint / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == sorted(NATIVE[family, key])
    saved = (result.last_checkpoint / "adapter_model.safetensors").read_bytes()
    assert b"lora_A" in saved
    assert b"embed" not in saved
    losses = [json.loads(line)["loss"] for line in (result.output_dir / "logging.jsonl").read_text().splitlines()
              if '"loss"' in line]  # fmt: skip
    assert losses[-1] < losses[0]
    answers = infer(InferArguments(ckpt_dir=str(result.last_checkpoint), show_dataset_sample=1, max_new_tokens=3))
    assert len(answers) == 1
