"""Tiny random models of each family that is converted to GGUF, with a tokenizer of its kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmtune.models.tiny import tiny_folder

SIZES: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SCALED = {"query_pre_attn_scalar": 32, "head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 512,
    "short_factor": [1 + number / 10 for number in range(8)], "long_factor": [1.0 + number for number in range(8)],
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`kind`: transformers' model_type. `tokenizer`: a key of `TOKENIZERS`."""

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "qwen2"


CASES = {
    "Qwen2ForCausalLM": Case("qwen2"),
    "Qwen2MoeForCausalLM": Case("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "Qwen3ForCausalLM": Case("qwen3", {"head_dim": 32}),
    "Qwen3MoeForCausalLM": Case("qwen3_moe", EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "LlamaForCausalLM": Case("llama", tokenizer="LlamaTokenizer"),
    "MistralForCausalLM": Case("mistral", {"sliding_window": None}, "llama-bpe"),
    "MixtralForCausalLM": Case("mixtral", {"num_local_experts": 4}, "LlamaTokenizer"),
    "GemmaForCausalLM": Case("gemma", {"head_dim": 32}, "GemmaTokenizer"),
    "Gemma2ForCausalLM": Case("gemma2", SCALED | {"sliding_window": 8, "num_hidden_layers": 3}, "GemmaTokenizer"),
    "Gemma3ForCausalLM": Case(
        "gemma3_text",
        SCALED | {"sliding_window": 8, "num_hidden_layers": 7, "rope_parameters": LINEAR},
        "GemmaTokenizer",
    ),
    "Phi3ForCausalLM": Case(
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 512, "max_position_embeddings": 2048},
        "LlamaTokenizer",
    ),
    "PhiForCausalLM": Case("phi", tokenizer="gpt-2"),
    "OlmoForCausalLM": Case("olmo", {"clip_qkv": 0.5}),
    "Olmo2ForCausalLM": Case("olmo2", tokenizer="dbrx"),
    "OlmoeForCausalLM": Case("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "GraniteForCausalLM": Case(
        "granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        "starcoder",
    ),
    "Starcoder2ForCausalLM": Case("starcoder2", {"sliding_window": None}, "starcoder"),
    "Glm4ForCausalLM": Case("glm4", {"head_dim": 16}),
    "GlmForCausalLM": Case("glm", {"head_dim": 16}),
    "SmolLM3ForCausalLM": Case("smollm3", {"num_hidden_layers": 4}),
    "SeedOssForCausalLM": Case("seed_oss", {"head_dim": 32}),
    "StableLmForCausalLM": Case("stablelm"),
    "CohereForCausalLM": Case("cohere"),
    "Exaone4ForCausalLM": Case("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "Ernie4_5ForCausalLM": Case("ernie4_5", {"head_dim": 32}),
    "HunYuanDenseV1ForCausalLM": Case("hunyuan_v1_dense", {"head_dim": 32}),
    "ArceeForCausalLM": Case("arcee"),
    "NemotronForCausalLM": Case("nemotron"),
}


def make_case(case: Case, folder: Path) -> Path:
    """Save weights that fp16 holds exactly; those of the layers are larger than usual, so that answers vary."""
    shutil.copytree(tiny_folder(), folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.kind, **(SIZES | case.changes)))
    for name, parameter in model.named_parameters():
        size = 0.03 if "embed" in name else 0.15 if parameter.dim() > 1 else 0.2
        parameter.data += size * torch.randn_like(parameter)
    model.half().float().save_pretrained(folder)
    if case.tokenizer.endswith("Tokenizer"):
        _write_pieces(folder, case.tokenizer)
    else:
        _change_tokenizer(folder, TOKENIZERS[case.tokenizer])
    return folder


def _write_pieces(folder: Path, name: str) -> None:
    """Write a tokenizer.model, and the tokenizer.json that transformers makes of it."""
    import sentencepiece
    from transformers import AutoTokenizer

    for file in folder.glob("tokenizer*"):
        file.unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(Path(tiny_folder.__code__.co_filename).with_name("tiny_corpus.txt")),
        model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=800, hard_vocab_limit=False,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=name == "LlamaTokenizer", pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"], minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} | special))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def _change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    change(tokenizer)
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def _three_digits(tokenizer: dict[str, Any]) -> None:
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = pattern["Regex"].replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _whole_tokens(tokenizer: dict[str, Any]) -> None:
    _three_digits(tokenizer)
    tokenizer["model"]["ignore_merges"] = True


def _gpt2(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = None
    tokenizer["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def _starcoder(tokenizer: dict[str, Any]) -> None:
    _gpt2(tokenizer)
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]}


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "qwen2": lambda tokenizer: None,
    "dbrx": _three_digits,
    "llama-bpe": _whole_tokens,
    "gpt-2": _gpt2,
    "starcoder": _starcoder,
}
