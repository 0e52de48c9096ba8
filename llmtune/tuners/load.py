"""The model of a checkpoint, with its adapter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmtune.arguments.groups import rope_options
from llmtune.checkpoint import checkpoint_kind, is_reward
from llmtune.models.attention import asked_attention
from llmtune.models.devices import spread_options
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.packed_attention import register_varlen
from llmtune.models.quantization import is_quantized, quantization_note, quantization_options
from llmtune.models.score import score_options
from llmtune.tuners.lora import load_adapter
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger, log_once

if TYPE_CHECKING:
    from llmtune.arguments.infer import LoadArguments


def load_tuned(args: LoadArguments) -> tuple[Any, Any]:
    """Load the model that the arguments name, for inference; of a reward model, the class with a score.

    Returns:
        The model on its device, a PEFT model where `ckpt_dir` holds an adapter, and its tokenizer.
    """
    checkpoint = None if args.ckpt_dir is None else Path(args.ckpt_dir)
    kind = None if checkpoint is None else checkpoint_kind(checkpoint)
    place = str(checkpoint) if kind == "full" else args.model_id_or_path
    has_tokenizer = checkpoint is not None and any(checkpoint.glob("tokenizer*"))
    assert args.model_type is not None
    info = MODEL_MAPPING[args.model_type]
    device = args.device or accelerator().kind
    spread = {} if args.device else spread_options(args.device_map)
    attention = asked_attention(args, args.attn_impl, on_cuda=torch.device(device).type == "cuda")
    named: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if attention == "varlen":
        register_varlen()
    scores = checkpoint is not None and is_reward(checkpoint)
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
        **(_score_options(args, checkpoint) if scores else {}),
        **args.hub_options(),
    )
    if scores:  # of the checkpoint, whose tokenizer has it
        model.config.pad_token_id = tokenizer.pad_token_id
    quantized = is_quantized(model)
    if quantized:
        get_logger().info(quantization_note(model))
    if kind == "lora":
        assert checkpoint is not None
        model = load_adapter(model, checkpoint)
    if device == "cpu" and args.device is None:
        log_once("Inference runs on the CPU, since there is no GPU.", level=logging.INFO)
    model = (model if quantized or spread else model.to(device)).eval()
    return model, tokenizer


def _score_options(args: LoadArguments, checkpoint: Path | None) -> dict[str, Any]:
    """Options that load a reward model: a folder with full weights must have a head, the base of an adapter cannot."""
    if checkpoint is not None and checkpoint_kind(checkpoint) == "full":
        return score_options(checkpoint) | {"new_tensors": ()}
    return score_options(args.folder(weights=True))
