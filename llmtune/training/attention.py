"""The attention of a run: chosen, switched on, and reported as it really is."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.arguments.stage import StageArguments
from llmtune.errors import ModelError, one_line
from llmtune.models.attention import asked_attention, best_flash
from llmtune.models.packed_attention import VARLEN, keeps_rows_apart, register_varlen
from llmtune.models.shifted import group_size, register_shifted
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.run.log import Decisions
from llmtune.utils.logging import get_logger


def attention_options(args: StageArguments) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the attention that flags request.

    Raises:
        UsageError, MissingPackageError: It is not available here.
    """
    asked = asked_attention(args, args.attn_impl, on_gpu=torch.cuda.is_available())
    return {} if asked in (None, VARLEN) else {"attn_implementation": asked}


def settle_attention(
    model: Any, args: StageArguments, decisions: Decisions, dtype: torch.dtype, asked: str | None
) -> None:
    """Switch to the attention of this run if the model was loaded with another.

    Args:
        dtype: Compute dtype; varlen kernels on GPUs support half precision only.
        asked: The attention that the model was loaded with on request.

    Raises:
        ModelError: The model does not support the requested attention.
    """
    packs = args.packing or args.padding_free
    on_gpu = model.device.type == "cuda"
    value, reason = "", "" if asked else "transformers' default for this model"
    if args.shift_attn:
        group = group_size(args.max_length)
        _need_plain(model)
        _switch(model, register_shifted(group))
        value, reason = f"shifted (LongLoRA), groups of {group:,} tokens; full in evaluation and inference", ""
    elif args.attn_impl == VARLEN:
        if not packs:
            get_logger().warning("--attn_impl varlen is for --packing and --padding_free; without them, it is sdpa.")
        _switch_to_varlen(model)
        value, reason = "varlen" if on_gpu else "varlen, one call per sequence on CPU", ""
    elif asked is None and packs and _suits_rows(model.device.type, dtype, args.torch_compile):
        reason = _switch_to_best(model) or reason
    active = active_attention(model)
    decisions.choose("Attention", value or active, reason)
    if asked and active != asked:
        get_logger().warning("Attention %s was requested, but the model uses %s.", asked, active)
    if packs and on_gpu and active in ("sdpa", "eager"):
        get_logger().warning(
            "Attention %s separates packed sequences with a max_length x max_length mask, which costs time and memory; "
            "--attn_impl varlen needs none%s.",
            active,
            ", in bf16 or fp16" if dtype is torch.float32 else "",
        )


def _suits_rows(device: str, dtype: torch.dtype, compiles: bool) -> bool:
    """Whether packed sequences can be attended to without a mask.

    Kernels on GPUs support half precision only. On a CPU there is one call per sequence, which torch.compile would
    recompile for each number of sequences.
    """
    return dtype is not torch.float32 if device == "cuda" else device == "cpu" and not compiles


def active_attention(model: Any) -> str:
    """The attention in the loaded model's configuration, which its layers read."""
    return str(getattr(model.config, "_attn_implementation", None) or "custom")


def _switch_to_best(model: Any) -> str:
    """Switch to FlashAttention if installed, else to varlen. Return the reason, "" if neither works."""
    before = active_attention(model)
    flash = best_flash() if model.device.type == "cuda" else None
    for name in (flash, VARLEN):
        if name == VARLEN and has_sharded_weights(model):
            continue  # it is tried on the model first, whose weights are still sharded
        try:
            if name == VARLEN:
                _switch_to_varlen(model)
                return "packed sequences are attended to separately, without a mask"
            if name is not None:
                _switch(model, name)
                return "it is installed, and attends to packed sequences separately, without a mask"
        except (ModelError, ValueError, ImportError) as err:
            model.set_attn_implementation(before)
            get_logger().info(f"Attention {name} does not work with this model: {err}")
    return ""


def _switch_to_varlen(model: Any) -> None:
    """Switch to varlen; raise ModelError if the model's attention needs what the kernel lacks."""
    before = active_attention(model)
    if getattr(model.config.get_text_config(), "attention_dropout", 0.0):
        raise ModelError(f"{type(model).__name__} uses attention dropout, which varlen attention does not support.")
    register_varlen()
    _switch(model, VARLEN)
    was_training = model.training
    model.eval()
    try:
        problem = "" if keeps_rows_apart(model) else "packed sequences would attend to each other"
    except (TypeError, ValueError, RuntimeError) as err:
        problem = one_line(err, 200)
    finally:
        model.train(was_training)
    if problem:
        model.set_attn_implementation(before)
        raise ModelError(f"{type(model).__name__} does not support varlen attention: {problem}. Use --attn_impl sdpa.")


def _switch(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if active_attention(model) != name:
        raise ModelError(f"{type(model).__name__} has its own attention, which cannot be replaced by {name}.")


def _need_plain(model: Any) -> None:
    """Raise ModelError unless every layer has plain causal attention."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if slides or kinds - {"full_attention"} or getattr(config, "attn_logit_softcapping", None):
        raise ModelError(
            f"--shift_attn true needs a model with full attention in every layer, which {type(model).__name__} is not. "
            "Remove it."
        )
