"""Convert full weights to one GGUF file, tensor by tensor, and read it back to check that the logits agree.

Names come from the gguf package's own tables, families from `gguf_families`; others need llama.cpp's own script
(`--llama_cpp`).
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from llmtune.arguments.export import ExportArguments
from llmtune.checkpoint import checkpoint_kind
from llmtune.errors import CheckpointError, LlmtuneError, ModelError, UsageError
from llmtune.exporting.gguf_families import Family, family_of, window_of
from llmtune.exporting.gguf_settings import add_settings
from llmtune.exporting.gguf_tensors import GgufTensor, plan_tensors
from llmtune.exporting.gguf_vocab import add_vocabulary, check_vocabulary
from llmtune.exporting.ollama import write_modelfile
from llmtune.merging.merge import check_logits, probe_ids
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
        family_of(folder)
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
            family = _convert(args, whole, file, tokenizer)
        if family.is_read_back:
            _compare_logits(args, whole, file)
    write_modelfile(args, folder, tokenizer)


def _run_script(args: ExportArguments, whole: Path, file: Path) -> None:
    script = Path(str(args.llama_cpp)) / SCRIPT
    command = [sys.executable, str(script), str(whole), "--outfile", str(file), "--outtype", args.gguf_type]
    get_logger().info("Running %s", " ".join(command))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not file.is_file():
        text = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ModelError(f"{script} failed: {text}")


# Writing


def _convert(args: ExportArguments, whole: Path, file: Path, tokenizer: Any) -> Family:
    import gguf

    family, config = family_of(whole)
    writer = gguf.GGUFWriter(file, family.arch)
    with ExitStack() as stack:
        tensors = open_checkpoint(whole, args.allow_pickle, stack)
        rows = len(tensors["model.embed_tokens.weight"][:, :1])
        add_settings(writer, family, config, args.gguf_type, rows)
        add_vocabulary(writer, whole, tokenizer, rows, _model_file(args, whole))
        plan = list(plan_tensors(tensors, family, config, args.gguf_type))
        for one in plan:
            writer.add_tensor_info(one.name, *one.layout(), raw_dtype=one.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for one in progress_bar(plan, desc="Writing GGUF", unit=" tensors", leave=False):
            writer.write_tensor_data(gguf.quants.quantize(one.read().float().contiguous().numpy(), one.kind))
        writer.close()
        if not family.is_read_back:
            _compare_tensors(file, plan, TOLERANCE[args.gguf_type])
    window = window_of(config)
    if window and not family.has_window:
        get_logger().warning(
            "It attends to the last %d tokens, in llama.cpp to all: longer conversations get other responses.", window
        )
    return family


# The proof


def _compare_logits(args: ExportArguments, whole: Path, file: Path) -> None:
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


def _compare_tensors(file: Path, plan: list[GgufTensor], tolerance: float) -> None:
    """Compare each tensor of a file with what was meant to be in it."""
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if len(found) != len(plan):
        raise CheckpointError(f"{file.name} has {len(found)} tensors, not {len(plan)}. It is not kept.")
    largest = 0.0
    for one in plan:
        stored = gguf.quants.dequantize(found[one.name].data, one.kind).reshape(one.shape)
        meant = one.read().float().numpy()
        largest = max(largest, float(abs(stored - meant).max() / max(abs(meant).max(), 1e-30)))
    if not largest <= tolerance:
        raise CheckpointError(f"{file.name} failed its check: a tensor differs by {largest:.1e}. It is not kept.")
    get_logger().info(
        "GGUF file, read back: %d tensors differ by at most %.1e of their largest value.", len(plan), largest
    )


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=probe_ids(model)).logits.float()
    return found
