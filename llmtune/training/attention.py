"""The attention of a run: chosen, switched on, and reported as it really is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmtune.arguments.stage import StageArguments
from llmtune.errors import ModelError, one_line
from llmtune.models.attention import asked_attention, best_flash
from llmtune.models.packed_attention import VARLEN, keeps_rows_apart, register_varlen
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.run.log import Decisions
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger


def attention_options(args: StageArguments) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the attention that flags request.

    Raises:
        UsageError, MissingPackageError: It is not available here.
    """
    asked = asked_attention(args, args.attn_impl, on_cuda=accelerator().is_cuda)
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
    packs = args.concatenates
    kind = model.device.type
    on_gpu = kind != "cpu"
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
        value, reason = "varlen" if kind == "cuda" else f"varlen, one call per sequence on {kind.upper()}", ""
    elif asked is None and packs and _suits_rows(model.device.type, dtype, args.torch_compile):
        reason = _switch_to_best(model, needed=args.sequence_parallel_size > 1) or reason
    active = active_attention(model)
    decisions.choose("Attention", value or active, reason)
    if asked and active != asked:
        get_logger().warning("Attention %s was requested, but the model uses %s.", asked, active)
    if (args.packing or args.padding_free == "true") and on_gpu and active in ("sdpa", "eager"):
        get_logger().warning(
            "Attention %s separates packed sequences with a max_length x max_length mask, which costs time and memory; "
            "--attn_impl varlen needs none%s.",
            active,
            ", in bf16 or fp16" if dtype is torch.float32 else "",
        )


def _suits_rows(device: str, dtype: torch.dtype, compiles: bool) -> bool:
    """Whether packed sequences can be attended to without a mask.

    Kernels for CUDA support half precision only. Elsewhere there is one call per sequence, which torch.compile would
    recompile for each number of sequences.
    """
    return dtype is not torch.float32 if device == "cuda" else not compiles


def active_attention(model: Any) -> str:
    """The attention in the loaded model's configuration, which its layers read."""
    return str(getattr(model.config, "_attn_implementation", None) or "custom")


def _switch_to_best(model: Any, *, needed: bool) -> str:
    """Switch to FlashAttention if installed, else to varlen. Return the reason, "" if neither works.

    Args:
        needed: Switch to varlen even if it cannot be tried yet.
    """
    before = active_attention(model)
    flash = best_flash() if model.device.type == "cuda" else None
    for name in (flash, VARLEN):
        if name == VARLEN and has_sharded_weights(model) and not needed:
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
    if has_sharded_weights(model):
        return  # it is tried when they can be gathered
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


# LongLoRA's shifted sparse attention


GROUPS = 4


def group_size(max_length: int) -> int:
    """Return the tokens per group: a quarter of max_length, rounded up to an even number."""
    return -(-max_length // (2 * GROUPS)) * 2


def register_shifted(group: int) -> str:
    """Register the attention with transformers; return its name there."""
    name = f"shifted_{group}"
    ALL_ATTENTION_FUNCTIONS.register(name, partial(_shifted_attention, group))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    return name


def _shifted_attention(
    group: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: query [B, H, T, D], key and value [B, Hkv, T, D] to [B, T, H, D].

    The mask is ignored in training: padding is on the right, where no trainable token attends to it.
    """
    length = query.shape[2]
    if not module.training or length <= group or length != key.shape[2]:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return plain
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise ValueError("shifted attention supports neither softcap nor sinks")
    times = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, times), repeat_kv(value, times)
    half = query.shape[1] // 2
    found = []
    for heads, first in ((slice(0, half), group), (slice(half, None), group // 2)):
        parts = [part[:, heads] for part in (query, key, value)]
        found.append(torch.cat(list(_group_by_group(parts, group, first, dropout, scaling)), 2))
    return torch.cat(found, 1).transpose(1, 2).contiguous(), None


def _group_by_group(
    parts: list[Tensor], group: int, first: int, dropout: float, scaling: float | None
) -> Iterator[Tensor]:
    """Outputs [B, h, t, D] of the first group, of `first` tokens; of all whole ones after it at once; of the rest."""
    length = parts[0].shape[2]
    whole = (length - first) // group * group
    for start, end, size in ((0, first, first), (first, first + whole, group), (first + whole, length, length)):
        if start == end:
            continue
        size = min(size, end - start)
        batch, heads = parts[0].shape[:2]
        count = (end - start) // size
        query, key, value = (
            part[:, :, start:end].reshape(batch, heads, count, size, -1).transpose(1, 2).flatten(0, 1) for part in parts
        )
        out = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling
        )
        yield out.reshape(batch, count, heads, size, -1).transpose(1, 2).reshape(batch, heads, end - start, -1)
