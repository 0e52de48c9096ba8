"""The attention that a run trains with: chosen, switched on, and named as it really is."""

from __future__ import annotations

from typing import Any

import torch

from llmtune.arguments.sft import SftArguments
from llmtune.errors import ModelError
from llmtune.models.attention import asked_attention, best_flash
from llmtune.models.packing_check import keeps_rows_apart
from llmtune.models.shifted import group_size, register_shifted
from llmtune.models.supervised_loss import has_divided_weights
from llmtune.models.varlen import VARLEN, register_varlen
from llmtune.run.log import Decisions
from llmtune.utils.logging import get_logger

__all__ = ["attention_options", "settle_attention"]


def attention_options(args: SftArguments) -> dict[str, Any]:
    """What `from_pretrained` is told: the attention that was asked for by name, if it can begin with it.

    Raises:
        UsageError, MissingPackageError: This machine does not have it.
    """
    asked = asked_attention(args, args.attn_impl, on_gpu=torch.cuda.is_available())
    return {} if asked in (None, VARLEN) else {"attn_implementation": asked}


def settle_attention(
    model: Any, args: SftArguments, decisions: Decisions, dtype: torch.dtype, asked: str | None
) -> None:
    """Switch to the attention of this run where it is another than the model was loaded with.

    Args:
        dtype: What is computed in; the kernels for rows behind one another know half precision only.
        asked: What the model was loaded with on request.

    Raises:
        ModelError: An attention was asked for that the model cannot have.
    """
    packs = args.packing or args.padding_free
    on_gpu = model.device.type == "cuda"
    reason = "as asked for" if asked else "transformers' choice for this model"
    if args.shift_attn:
        group = group_size(args.max_length)
        _need_plain(model)
        _switch(model, register_shifted(group))
        reason = f"--shift_attn true; in training, groups of {group:,} tokens; evaluation and serving attend in full"
    elif args.attn_impl == VARLEN:
        if not packs:
            get_logger().warning("--attn_impl varlen is for --packing and --padding_free: without, it is sdpa.")
        _switch_to_varlen(model)
        reason = "as asked for" if on_gpu else "as asked for; row by row, since there is no GPU"
    elif asked is None and packs and _suits_rows(model.device.type, dtype, args.torch_compile):
        reason = _switch_to_best(model) or reason
    active = active_attention(model)
    decisions.note(f"Attention {active}: {reason}.")
    if asked and active != asked:
        get_logger().warning("Attention %s was asked for, and %s is what the model has.", asked, active)
    if packs and on_gpu and active in ("sdpa", "eager"):
        get_logger().warning(
            "Attention %s makes a mask of max_length x max_length to keep rows apart, which costs time and memory: "
            "--attn_impl varlen does not%s.",
            active,
            ", in bf16 or fp16" if dtype is torch.float32 else "",
        )


def _suits_rows(device: str, dtype: torch.dtype, compiles: bool) -> bool:
    """Whether attention over rows behind one another can do without a mask.

    Kernels on GPUs know half precision alone. On a CPU a call is made for each row, which torch.compile would compile
    anew for each number of rows.
    """
    return dtype is not torch.float32 if device == "cuda" else device == "cpu" and not compiles


def active_attention(model: Any) -> str:
    """As the loaded model's configuration says, which is what its layers look at."""
    return str(getattr(model.config, "_attn_implementation", None) or "of its own")


def _switch_to_best(model: Any) -> str:
    """Flash attention where it is installed, else torch's own kernel. Returns the reason, "" where neither works."""
    before = active_attention(model)
    flash = best_flash() if model.device.type == "cuda" else None
    for name in (flash, VARLEN):
        if name == VARLEN and has_divided_weights(model):
            continue  # it is tried on the model first, which has no weights to try it with yet
        try:
            if name == VARLEN:
                _switch_to_varlen(model)
                how = "torch's own kernel" if model.device.type == "cuda" else "a call for each row"
                return f"{how} keeps rows of a sequence apart without a mask"
            if name is not None:
                _switch(model, name)
                return "it is installed, and keeps rows of a sequence apart without a mask"
        except (ModelError, ValueError, ImportError) as err:
            model.set_attn_implementation(before)
            get_logger().info(f"Attention {name} is not for this model: {err}")
    return ""


def _switch_to_varlen(model: Any) -> None:
    """Raises ModelError where the model's attention does something that the kernel cannot."""
    before = active_attention(model)
    if getattr(model.config.get_text_config(), "attention_dropout", 0.0):
        raise ModelError(f"{type(model).__name__} drops attention at random, which varlen attention cannot.")
    register_varlen()
    _switch(model, VARLEN)
    was_training = model.training
    model.eval()
    try:
        problem = "" if keeps_rows_apart(model) else "rows of a sequence would see each other"
    except (TypeError, ValueError, RuntimeError) as err:
        problem = " ".join(str(err).split())[:200]
    finally:
        model.train(was_training)
    if problem:
        model.set_attn_implementation(before)
        raise ModelError(f"{type(model).__name__} cannot have varlen attention: {problem}. Take --attn_impl sdpa.")


def _switch(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if active_attention(model) != name:
        raise ModelError(f"{type(model).__name__} has an attention of its own, which cannot be replaced by {name}.")


def _need_plain(model: Any) -> None:
    """Raise ModelError where attention is more than a softmax over all that came before."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if slides or kinds - {"full_attention"} or getattr(config, "attn_logit_softcapping", None):
        raise ModelError(
            f"--shift_attn true is for models whose attention is full in every layer, and that of "
            f"{type(model).__name__} is not. Leave it away: its attention is cheap on long texts already."
        )
