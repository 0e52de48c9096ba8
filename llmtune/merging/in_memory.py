"""Merge adapters into their base model, prove that the result answers alike, and write it whole."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from llmtune.checkpoint import copy_settings
from llmtune.errors import CheckpointError, OutputError
from llmtune.merging.files import EYES, copy_files
from llmtune.models.prequantized import saved_quantization
from llmtune.models.quantization import is_quantized
from llmtune.utils.files import atomic_folder
from llmtune.utils.logging import get_logger

MERGED = "Merged %s into its base model: logits differ by %.1e of the largest logit."
PROBE_LENGTH = 16
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest difference of logits, as a share of the largest logit, that rounding explains."""


def merged_folder(checkpoint: Path) -> Path:
    return checkpoint.resolve().with_name(f"{checkpoint.resolve().name}-merged")


def merge_and_save(model: Any, tokenizer: Any, checkpoint: Path, target: Path | None = None) -> Path:
    """Write `<checkpoint>-merged`, or `target`, which plain transformers loads; the PEFT model is used up.

    Raises:
        OutputError: The folder exists already, or cannot be written.
        CheckpointError: The adapter changes nothing, or the merged model answers differently.
    """
    target = target or merged_folder(checkpoint)
    if target.exists():
        place = shlex.quote(str(target))
        raise OutputError(f"{target} exists already. Use it with --ckpt_dir {place}, or remove it to merge again.")
    base = model.get_base_model()
    if is_quantized(base) and saved_quantization(base.name_or_path):
        raise CheckpointError(
            f"{checkpoint} cannot be merged: its base model was saved quantised, and the sum would be rounded again. "
            "Serve the adapter with its base model, as infer does, or merge it into the base model before quantisation "
            "(--model_id_or_path FOLDER)."
        )
    if is_quantized(base):
        raise CheckpointError(f"{checkpoint} can be merged into whole weights only: load it with --quantization_bit 0.")
    model.eval()
    probe = probe_ids(model)
    with torch.no_grad():
        before = model(input_ids=probe).logits.float()
        with model.disable_adapter():
            base = model(input_ids=probe).logits.float()
        merged = model.merge_and_unload()
        after = merged(input_ids=probe).logits.float()
    scale = float(before.abs().max().clamp(min=1e-6))
    difference = float((before - after).abs().max()) / scale
    if not difference < TOLERANCE.get(merged.dtype, 1e-3):
        raise CheckpointError(
            f"Merging {checkpoint} failed its check: logits differ by {difference:.2%} of the largest logit. "
            "Nothing is written."
        )
    if torch.equal(base, after):
        raise CheckpointError(
            f"Merging {checkpoint} changes nothing: its adapter is still as it began. Was the run stopped at once?"
        )
    with atomic_folder(target) as folder:
        merged.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        copy_files(checkpoint, folder, EYES)
        copy_settings(checkpoint, folder, sft_type="full", quantization_bit=0)
    get_logger().info(MERGED, checkpoint, difference)
    return target


def probe_ids(model: Any) -> torch.Tensor:
    """A few tokens that logits are compared on, [1, T]; the same ones every time."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, size, (1, PROBE_LENGTH), generator=generator).to(
        "cpu" if model.device.type == "meta" else model.device
    )
