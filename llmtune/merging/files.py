"""Files of a model folder beside the weights: config.json, tokenizer, generation settings, image processor, code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtune.arguments.groups import rope_options
from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import copy_settings
from llmtune.errors import UsageError
from llmtune.models.heads import is_reward_model
from llmtune.models.ports import find_port, read_config
from llmtune.utils.files import write_json

TOKENIZER = re.compile(
    r"tokenizer.*|vocab\..+|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\..+"
    r"|additional_chat_templates|.+\.tiktoken|(spiece|sentencepiece.*|tokenizer)\.model"
)
GENERATION = re.compile(r"generation_config\.json")
EYES = re.compile(r"(video_)?(pre)?processor_config\.json")
CODE = re.compile(r".+\.py|LICENSE.*|NOTICE.*|USE_POLICY.*")


def copy_files(source: Path, target: Path, pattern: re.Pattern[str]) -> list[str]:
    """Copy the files of these names byte by byte; existing files of the target stay."""
    copied = []
    for file in sorted(source.iterdir()):
        if pattern.fullmatch(file.name) and file.is_file() and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied


def complete_merged(folder: Path, base: Path, checkpoint: Path, args: InferArguments) -> None:
    """Copy the files that serving needs from the checkpoint, or from the base model where it lacks them."""
    place = args.tokenizer_id_or_path
    is_copied = any(checkpoint.glob("tokenizer*")) and "tokenizer_id_or_path" in args.inherited
    sources = [checkpoint, base] if place is None or is_copied else [Path(place)]
    tokenizer = next((source for source in sources if any(source.glob("tokenizer*"))), None)
    ported = not args.trust_remote_code and find_port(read_config(base)) is not None
    if tokenizer is None or (ported and tokenizer == base):
        # the tokenizers of 2023's checkpoints are custom code: written in transformers' own format
        args.load_tokenizer(base, args.tokenizer_id_or_path).save_pretrained(str(folder))
    else:
        copy_files(tokenizer, folder, TOKENIZER)
    for source in (checkpoint, base):
        copy_files(source, folder, GENERATION)
        copy_files(source, folder, EYES)
    if not ported:
        copy_files(base, folder, CODE)
    copy_settings(checkpoint, folder, sft_type="full", quantization_bit=0)


def write_config(
    model: Any, base: Path, folder: Path, args: InferArguments, *, dtype: torch.dtype | None, untied: bool
) -> None:
    """Write the base model's config.json with the changes of merging: dtype, vocabulary size, tied weights, the score.

    Args:
        model: Of a reward model, with its padding token.
    """
    config = model.config
    if untied:
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    ported = not args.trust_remote_code and find_port(read_config(base)) is not None
    if ported or rope_options(args):
        if dtype is not None:
            config.dtype = dtype
        config.architectures = [type(model).__name__]
        config.save_pretrained(str(folder))
        return
    written = read_config(base)
    written.pop("_name_or_path", None)
    if is_reward_model(model):
        one_label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": config.pad_token_id}
        written |= {"architectures": [type(model).__name__], **one_label}
    parts = [written, *(written[key] for key in ("text_config", "llm_config") if isinstance(written.get(key), dict))]
    if dtype is not None:
        written[_dtype_key(written)] = str(dtype).removeprefix("torch.")
        for part in parts[1:]:
            if _dtype_key(part) in part:
                part[_dtype_key(part)] = str(dtype).removeprefix("torch.")
    for part in parts:
        if "vocab_size" in part:
            part["vocab_size"] = model.get_input_embeddings().weight.shape[0]
    if untied:
        for part in parts:
            part["tie_word_embeddings"] = False
    write_json(folder / "config.json", written)


def _dtype_key(config: dict[str, Any]) -> str:
    return "torch_dtype" if "torch_dtype" in config else "dtype"


# Write a stream of tensors into safetensors files of at most a given size, with an index


UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class ShardWriter:
    """Writer that holds one shard at a time. A tensor that is larger than a shard gets its own."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.total = 0
        self._waiting: dict[str, Tensor] = {}
        self._size = 0
        self._files: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._size + size > self.max_bytes:
            self._flush()
        self._waiting[name] = tensor.contiguous()
        self._size += size
        self.total += size

    def finish(self) -> list[Path]:
        """Write the last shard, and rename the files, whose number is known only now."""
        self._flush()
        if len(self._files) == 1:
            return [self._files[0][0].rename(self.folder / "model.safetensors")]
        found: list[Path] = []
        places: dict[str, str] = {}
        for number, (file, names) in enumerate(self._files, start=1):
            final = file.rename(self.folder / f"model-{number:05}-of-{len(self._files):05}.safetensors")
            places |= dict.fromkeys(names, final.name)
            found.append(final)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(places.items()))}
        write_json(self.folder / "model.safetensors.index.json", index)
        return found

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if not self._waiting:
            return
        file = self.folder / f"shard-{len(self._files)}.part"
        save_file(self._waiting, file, metadata={"format": "pt"})
        self._files.append((file, list(self._waiting)))
        self._waiting = {}
        self._size = 0


def parse_size(text: str) -> int:
    """Return the bytes of `2GB`, `500MB` or a number.

    Raises:
        UsageError: Anything else, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2]])
    if size < 1:
        raise UsageError(f"--max_shard_size {text}: give a size such as 2GB or 500MB.")
    return size
