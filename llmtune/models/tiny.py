"""The embedded model: a tiny Qwen2 and its tokenizer, made from code into an ordinary Hugging Face folder.

The weights are random, so it knows nothing until it is trained; everything else about it is as in a large model. Only
tokenizers, torch and safetensors are needed to make it, and the same bytes come out every time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from llmtune.data.families.embedded import DEFAULT_AUTHOR, DEFAULT_NAME, facts, introductions
from llmtune.errors import OutputError
from llmtune.utils.files import cache_root, is_whole, publish_over, read_json, seal_of, temporary_folder, write_json
from llmtune.utils.logging import get_logger

SEED = 20240229
INITIAL_STD = 0.05
VOCAB_SIZE = 2048
PAD, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Words with their leading space, single digits, runs of punctuation, line breaks: the split that Qwen2 uses.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "initializer_range": INITIAL_STD,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_sliding_window": False,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "dtype": "float32",
}
GENERATION_CONFIG: dict[str, Any] = {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "Qwen2Tokenizer",
    "model_max_length": CONFIG["max_position_embeddings"],
    "pad_token": PAD,
    "eos_token": END,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}


def tiny_folder() -> Path:
    """The folder of the embedded model under the cache, made on first use.

    Its name holds a digest of all that the files are made from, so a changed definition never meets old files.
    """
    folder = cache_root() / "models" / f"llmtune-tiny-{_digest()}"
    seals = read_json(_seals_of(folder))
    if seals and all(is_whole(folder / name, seal) for name, seal in seals.items()):
        return folder
    if folder.exists() and seals:
        get_logger().warning(f"{folder} is damaged; it is made anew.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            _write_tokenizer(temporary)
            write_json(temporary / "config.json", CONFIG)
            write_json(temporary / "generation_config.json", GENERATION_CONFIG)
            _write_weights(temporary / "model.safetensors")
            seals = {file.name: seal_of(file) for file in temporary.iterdir()}
            publish_over(temporary, folder)  # another process may be quicker; its files are these files
        write_json(_seals_of(folder), seals)
    except OSError as err:
        raise OutputError(
            f"Cannot write {folder}: {err.strerror or err}. Set LLMTUNE_CACHE to another folder."
        ) from err
    return folder


def _seals_of(folder: Path) -> Path:
    """Elsewhere: the folder is to be an ordinary model's."""
    return cache_root() / "seals" / f"{folder.name}.json"


def _digest() -> str:
    made_from = [SEED, SPECIAL_TOKENS, SPLIT, CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, list(_training_texts())]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:12]


def _training_texts() -> Iterator[str]:
    """What the tokenizer is trained on: prose, and the embedded rows with placeholders unfilled and filled."""
    prose = resources.files("llmtune.models").joinpath("tiny_corpus.txt").read_text(encoding="utf-8")
    yield from prose.splitlines()
    train, validation = facts()
    for row in [*introductions(), *train, *validation]:
        for text in row.values():
            yield text
            if "{{" in text:
                chinese = any(ord(character) > 0x2E80 for character in text)
                name, author = (values[0 if chinese else 1] for values in (DEFAULT_NAME, DEFAULT_AUTHOR))
                yield text.replace("{{NAME}}", name).replace("{{AUTHOR}}", author)
        yield "system\nuser\nassistant\n"


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise AssertionError(f"The corpus gives {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}.")
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)


def _write_weights(path: Path) -> None:
    """Normal values from a generator of its own: the random state of the caller stays as it is."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, shape in _shapes():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape)
        elif name.endswith(".bias"):
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = torch.normal(0.0, INITIAL_STD, shape, generator=generator)
    save_file(weights, path, metadata={"format": "pt"})


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, middle = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    key_value = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", (VOCAB_SIZE, hidden)
    for number in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for name, size in (("q", hidden), ("k", key_value), ("v", key_value)):
            yield f"{layer}.self_attn.{name}_proj.weight", (size, hidden)
            yield f"{layer}.self_attn.{name}_proj.bias", (size,)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (middle, hidden)
        yield f"{layer}.mlp.up_proj.weight", (middle, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, middle)
    yield "model.norm.weight", (hidden,)
