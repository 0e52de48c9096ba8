"""Load what a checkpoint folder holds, as an engine that answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmtune.arguments.checkpoint_folder import checkpoint_kind
from llmtune.arguments.checks import parse_chat_template_kwargs
from llmtune.arguments.infer import InferArguments
from llmtune.arguments.long_context import rope_options
from llmtune.errors import UsageError
from llmtune.inference.adapters import BASE, Adapters, peft_name
from llmtune.inference.engine import Engine
from llmtune.models.attention import asked_attention
from llmtune.models.devices import spread_options
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import get_model_tokenizer, resolve_dtype
from llmtune.models.quantization import is_quantized, quantization_note, quantization_options
from llmtune.models.varlen import register_varlen
from llmtune.templates.chat import ChatTemplate, get_template
from llmtune.templates.images import limit_pixels
from llmtune.tuners.lora import load_adapter
from llmtune.tuners.vocabulary import has_own_tokens
from llmtune.utils.logging import get_logger, log_once

__all__ = ["load_engine"]


def load_engine(args: InferArguments, others: Mapping[str, InferArguments] | None = None) -> Engine:
    """Load model, adapter and template as the arguments say.

    Args:
        others: Name -> the settings of a further adapter over the same base, each with a checkpoint folder. With
            these, or with an adapter of its own, the engine also has the bare model, named BASE.
    """
    checkpoint = None if args.ckpt_dir is None else Path(args.ckpt_dir)
    kind = None if checkpoint is None else checkpoint_kind(checkpoint)
    place = str(checkpoint) if kind == "full" else args.model_id_or_path
    has_tokenizer = checkpoint is not None and any(checkpoint.glob("tokenizer*"))
    assert args.model_type is not None
    info = MODEL_MAPPING[args.model_type]
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    spread = {} if args.device else spread_options(args.device_map)
    attention = asked_attention(args, args.attn_impl, on_gpu=device.startswith("cuda"))
    named: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if attention == "varlen":
        register_varlen()
    model, tokenizer = get_model_tokenizer(
        args.model_type,
        model_id_or_path=place,
        torch_dtype=args.dtype,
        tokenizer_id_or_path=str(checkpoint) if has_tokenizer else args.tokenizer_id_or_path,
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        **rope_options(args),
        device=device,
        **named,
        **quantization_options(args, info, resolve_dtype(info, args.dtype)[0], device) | spread,
        **args.hub_options(),
    )
    quantized = is_quantized(model)
    if quantized:
        get_logger().info(quantization_note(model))
    if kind == "lora":
        assert checkpoint is not None
        model = load_adapter(model, checkpoint)
    if device == "cpu" and args.device is None:
        log_once("Inference runs on the CPU, since there is no GPU.", level=logging.INFO)
    model = (model if quantized or spread else model.to(device)).eval()
    limit_pixels(tokenizer, args.max_pixels)
    template = _template(args, tokenizer)
    if kind != "lora" and not others:
        return Engine(model, template)
    templates = {BASE: template} if kind == "lora" else {}
    for name, other in (others or {}).items():
        assert other.ckpt_dir is not None
        folder = Path(other.ckpt_dir)
        if has_own_tokens(folder):
            raise UsageError(f"{folder} has tokens of its own, so it cannot share a base. Serve it as --ckpt_dir.")
        model = load_adapter(model, folder, name=peft_name(name))
        templates[name] = _template(other, tokenizer)
    main = "default" if kind == "lora" else ""
    return Engine(model.eval(), template, Adapters(model, template, templates, main))


def _template(args: InferArguments, tokenizer: Any) -> ChatTemplate:
    assert args.template_type is not None
    return get_template(
        args.template_type,
        tokenizer,
        system=args.system,
        max_length=args.max_length,
        special_tokens_in_text=args.special_tokens_in_text,
        tool_format=args.tool_format,
        template_kwargs=parse_chat_template_kwargs(args.chat_template_kwargs),
    )
