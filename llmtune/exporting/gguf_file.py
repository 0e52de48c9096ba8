"""Convert full weights to one GGUF file, tensor by tensor, and read it back to check that the logits agree.

Names come from the gguf package's own tables. The listed families have tensors that are converted unchanged, or with
the permutation for RoPE that llama.cpp documents; others need llama.cpp's own script (`--llama_cpp`).
"""

from __future__ import annotations

import contextlib
import gc
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmtune.arguments.export import ExportArguments
from llmtune.checkpoint import checkpoint_kind
from llmtune.errors import CheckpointError, LlmtuneError, ModelError, UsageError
from llmtune.exporting.gguf_vocab import add_vocabulary, check_vocabulary
from llmtune.exporting.ollama import write_modelfile
from llmtune.merging.merge import check_logits, probe_ids
from llmtune.models.ports import read_config
from llmtune.models.ports.tensors import open_checkpoint
from llmtune.models.quantization import saved_quantization
from llmtune.models.whole_weights import check_loaded
from llmtune.utils.logging import get_logger
from llmtune.utils.progress import progress_bar
from llmtune.utils.system import need

MODEL_FILE = "tokenizer.model"
SCRIPT = "convert_hf_to_gguf.py"
TOLERANCE = {"f32": 1e-3, "f16": 2e-2, "bf16": 8e-2, "q8_0": 8e-2}
"""Largest difference of logits, relative to the largest logit, by dtype."""


@dataclass(frozen=True)
class Family:
    """A family. `arch`: llama.cpp's name. `permutes`: whether llama.cpp orders the rows of q and k differently."""

    arch: str
    permutes: bool = False


FAMILIES = {
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3"),
    "LlamaForCausalLM": Family("llama", permutes=True),
    "MistralForCausalLM": Family("llama", permutes=True),
}


def need_converter(args: ExportArguments) -> None:
    """Check that a conversion is possible, before anything is merged.

    Raises:
        MissingPackageError: gguf is not installed. UsageError: No such script. ModelError: A family or a tokenizer
            that needs a conversion of its own.
    """
    if args.llama_cpp is not None:
        if not (Path(args.llama_cpp) / SCRIPT).is_file():
            raise UsageError(f"--llama_cpp {args.llama_cpp}: there is no {SCRIPT} in this folder.")
        return
    need("gguf", "--to gguf", extra="gguf")
    folder = args.checkpoint() if checkpoint_kind(args.checkpoint()) == "full" else args.inferred.folder()
    if saved_quantization(folder):
        raise ModelError(f"{folder} is quantised already: GGUF is converted from full weights.")
    with _next_step(folder, args):
        _family(folder)
        if (folder / "tokenizer.json").is_file():
            check_vocabulary(folder, _model_file(args, folder))


def _model_file(args: ExportArguments, folder: Path) -> Path | None:
    """Return the tokenizer.model of a folder or, since runs save only tokenizer.json, that of its base model."""
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    with contextlib.suppress(LlmtuneError):
        base = args.inferred.folder()
        if (base / MODEL_FILE).is_file():
            return base / MODEL_FILE
    return None


@contextlib.contextmanager
def _next_step(folder: Path, args: ExportArguments) -> Iterator[None]:
    """Name the alternative converter in errors of llmtune's own."""
    try:
        yield
    except ModelError as err:
        command = f"python {SCRIPT} FOLDER --outfile model.gguf --outtype {args.gguf_type}"
        raise ModelError(
            f"{folder.name} cannot be converted here: {str(err).rstrip('.')}. Merge it (llmtune merge), and "
            f"convert the folder with llama.cpp's script: {command}; or give --llama_cpp DIR, which runs it."
        ) from err


def write_gguf(args: ExportArguments, whole: Path, folder: Path) -> None:
    """Write `model.gguf` and an Ollama `Modelfile`.

    Raises:
        ModelError: See `need_converter`. CheckpointError: The file's logits differ; it is not kept.
    """
    file = folder / "model.gguf"
    tokenizer = args.inferred.load_tokenizer(whole)
    if args.llama_cpp is not None:
        _run_script(args, whole, file)
    else:
        with _next_step(whole, args):
            _convert(args, whole, file, tokenizer)
        _prove(args, whole, file)
    write_modelfile(args, folder, tokenizer)


def _run_script(args: ExportArguments, whole: Path, file: Path) -> None:
    script = Path(str(args.llama_cpp)) / SCRIPT
    command = [sys.executable, str(script), str(whole), "--outfile", str(file), "--outtype", args.gguf_type]
    get_logger().info("Running %s", " ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        text = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ModelError(f"{script} failed: {text}")


def _family(folder: Path) -> Family:
    config = read_config(folder)
    names = config.get("architectures") or ["a class that config.json does not name"]
    if names[0] not in FAMILIES:
        raise ModelError(f"{names[0]} is not one of {', '.join(FAMILIES)}")
    kind = _rope(config).get("rope_type", "default")
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise ModelError(f"its RoPE scaling is {kind!r}")
    return FAMILIES[names[0]]


# Writing


def _convert(args: ExportArguments, whole: Path, file: Path, tokenizer: Any) -> None:
    import gguf

    family, config = _family(whole), read_config(whole)
    writer = gguf.GGUFWriter(file, family.arch)
    with ExitStack() as stack:
        tensors = open_checkpoint(whole, args.allow_pickle, stack)
        rows = len(tensors["model.embed_tokens.weight"][:, :1])
        _add_settings(writer, config, args.gguf_type, rows)
        add_vocabulary(writer, whole, tokenizer, rows, _model_file(args, whole))
        plan = list(_plan(tensors, family, config, args.gguf_type))
        for one in plan:
            writer.add_tensor_info(one.name, *one.layout(), raw_dtype=one.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in progress_bar(plan, desc="Writing GGUF", unit=" tensors", leave=False):
            writer.write_tensor_data(gguf.quants.quantize(one.read().float().contiguous().numpy(), one.kind))
        writer.close()


@dataclass(frozen=True)
class _Tensor:
    """One tensor to write. `kind`: a gguf.GGMLQuantizationType."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    read: Callable[[], torch.Tensor]

    def layout(self) -> tuple[tuple[int, ...], Any, int]:
        """Return shape, numpy dtype and size in bytes, as in the file."""
        import gguf
        import numpy as np

        plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
        if self.kind in plain:
            dtype = np.dtype(plain[self.kind])
            return self.shape, dtype, math.prod(self.shape) * dtype.itemsize
        packed = gguf.quants.quant_shape_to_byte_shape(self.shape, self.kind)
        return packed, np.dtype(np.uint8), math.prod(packed)


def _plan(tensors: dict[str, Any], family: Family, config: dict[str, Any], gguf_type: str) -> Iterator[_Tensor]:
    """Return the tensors of the file: vectors in fp32, matrices in the requested type.

    Raises:
        ModelError: A tensor that is not in gguf's tables.
    """
    import gguf

    kinds = gguf.GGMLQuantizationType
    wanted = kinds[gguf_type.upper()]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for source, tensor in tensors.items():
        if source.endswith(".rotary_emb.inv_freq"):
            continue
        if source == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"its tensor {source} has no name in GGUF")
        shape = tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
        fits = wanted is not kinds.Q8_0 or shape[-1] % 32 == 0
        kind = kinds.F32 if len(shape) == 1 else wanted if fits else kinds.F16
        yield _Tensor(name, shape, kind, partial(_read, tensor, _heads(source, family, config)))
    if _rope(config)["rope_type"] == "llama3":
        factors = _llama3_factors(config)
        yield _Tensor("rope_freqs.weight", tuple(factors.shape), kinds.F32, lambda: factors)


def _heads(source: str, family: Family, config: dict[str, Any]) -> int:
    """Return the heads of a tensor whose rows have to be permuted for llama.cpp; 0 for all others."""
    if not family.permutes:
        return 0
    heads = int(config["num_attention_heads"])
    if ".self_attn.q_proj." in source:
        return heads
    return int(config.get("num_key_value_heads") or heads) if ".self_attn.k_proj." in source else 0


def _read(tensor: Any, heads: int) -> torch.Tensor:
    found: torch.Tensor = tensor[...]
    if not heads:
        return found
    # RoPE pairs the first half of a head with the second in transformers, neighbours in llama.cpp.
    parts = found.reshape(heads, 2, found.shape[0] // heads // 2, *found.shape[1:])
    return parts.transpose(1, 2).reshape(found.shape)


def _llama3_factors(config: dict[str, Any]) -> torch.Tensor:
    """Return Llama 3.1's RoPE factors, which divide each pair's frequency, [head size / 2]."""
    rope = _rope(config)
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turns = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_size, 2).float() / head_size)
    wave = 2 * math.pi / turns
    context, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (context / wave - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    found = torch.where(wave > context / low, torch.full_like(wave, factor), between)
    return torch.where(wave < context / high, torch.ones_like(wave), found)


def _add_settings(writer: Any, config: dict[str, Any], gguf_type: str, rows: int) -> None:
    import gguf

    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kinds = gguf.LlamaFileType
    types = {"f32": kinds.ALL_F32, "f16": kinds.MOSTLY_F16, "bf16": kinds.MOSTLY_BF16, "q8_0": kinds.MOSTLY_Q8_0}
    writer.add_file_type(types[gguf_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(rows)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return the RoPE parameters of a config.json of transformers 5 or earlier."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found.setdefault("rope_type", found.pop("type", "default"))
    return found


# The proof


def _prove(args: ExportArguments, whole: Path, file: Path) -> None:
    """Compare the logits of the folder with those of the file, read by transformers, in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = AutoConfig.from_pretrained(whole)
    model, report = AutoModelForCausalLM.from_pretrained(
        whole, dtype=torch.float32, use_safetensors=not args.allow_pickle, output_loading_info=True
    )
    check_loaded(whole, report, own)
    before = _logits(model)
    del model
    gc.collect()
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) != getattr(own, name):
            raise CheckpointError(f"{file.name} has another {name} ({getattr(config, name)}) than the model.")
    for name in ("head_dim", "rope_parameters", "attention_bias", "mlp_bias"):  # what that loader leaves out
        if hasattr(own, name):
            setattr(config, name, getattr(own, name))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, dtype=torch.float32)
    after = _logits(model)
    tolerance = TOLERANCE[args.gguf_type]
    difference = check_logits(before, after, tolerance, what="The GGUF file", outcome="It is not kept.")
    get_logger().info("GGUF file, read back by transformers: logits differ by %.1e of the largest logit.", difference)


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=probe_ids(model)).logits.float()
    return found
