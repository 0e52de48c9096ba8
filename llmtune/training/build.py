"""The model to train, and the collator of its batches."""

from __future__ import annotations

from typing import Any

import torch
from transformers import set_seed

from llmtune.arguments.groups import rope_options
from llmtune.arguments.optimizers import COMPENSATING, in_bf16, offloads
from llmtune.arguments.stage import StageArguments
from llmtune.errors import ModelError, one_line
from llmtune.models.devices import first_device, spread_options
from llmtune.models.dtypes import dtype_name, resolve_dtype
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.packed_attention import VARLEN, shares_prompts, takes_one_sequence
from llmtune.models.quantization import is_quantized, quantization_note, quantization_options
from llmtune.models.score import install_scores, score_options
from llmtune.models.supervised_loss import has_sharded_weights, install_supervised_loss
from llmtune.run.log import Decisions
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.comparisons import ComparisonCollator
from llmtune.samples.prepare import Prepared
from llmtune.training.attention import active_attention, attention_options, settle_attention
from llmtune.tuners.fp8_base import convert_base
from llmtune.tuners.targets import settle_routers
from llmtune.tuners.tune import count_parameters, keep_unpacked, prepare_tuner
from llmtune.tuners.vocabulary import NewRows, grow_vocabulary, start_new_rows


def build_model(
    args: StageArguments, info: ModelInfo, decisions: Decisions, num_steps: int, new_rows: NewRows | None = None
) -> Any:
    """Load the model and set up what `--sft_type` trains."""
    set_seed(args.seed)  # fresh adapters are random
    model = load_weights(args, decisions)
    if new_rows:
        grow_vocabulary(model, max(new_rows) + 1)
        start_new_rows(model, new_rows)
    model = prepare_tuner(model, args, info, num_steps=num_steps, new_token_ids=list(new_rows or ()))
    if args.fp8_base and (note := convert_base(model)):
        decisions.fact("Base", note)
    if note := settle_routers(model, args):
        decisions.fact("MoE routers", note)
    if args.SCORES:
        install_scores(model)
    else:
        install_supervised_loss(model)
    trainable, parameters = count_parameters(model)
    decisions.fact("Trainable parameters", f"{trainable:,} of {parameters:,} ({trainable / parameters:.2%})")
    return model


def load_weights(args: StageArguments, decisions: Decisions) -> Any:
    """Load the model onto its device, in the dtype that training needs.

    Full fine-tuning keeps fp32 master weights and computes in `--dtype` by autocast, but with `--pure_bf16`.
    """
    assert args.model_type is not None
    dtype, reason = resolve_dtype(MODEL_MAPPING[args.model_type], args.dtype)
    decisions.choose("dtype", dtype_name(dtype), "" if args.dtype else reason)
    compute_dtype = dtype
    attention = attention_options(args)
    if args.rope_scaling is not None:
        decisions.fact("RoPE scaling", f"{args.rope_scaling}, factor {args.rope_factor:g}")
    if in_bf16(args):
        decisions.choose("Master weights", *_without_masters(args))
    elif args.sft_type == "full" and dtype is not torch.float32:
        decisions.choose("Master weights", "fp32", f"{dtype_name(dtype)} would lose small updates")
        dtype = torch.float32
    device = first_device()
    spread = spread_options(args.device_map)
    model, _ = get_model_tokenizer(
        args.model_type,
        model_id_or_path=args.model_id_or_path,
        torch_dtype=dtype,
        load_tokenizer=False,
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        **attention,
        **rope_options(args),
        device=device,
        **({"use_kernels": True} if args.use_kernels else {}),
        **quantization_options(args, MODEL_MAPPING[args.model_type], dtype, device) | spread,
        **(score_options(args.folder()) if args.SCORES else {}),
        **args.hub_options(),
    )
    # FSDP and ZeRO-3 place the sharded weights on the devices themselves.
    stays = is_quantized(model) or spread or args.fsdp or has_sharded_weights(model)
    model = model if stays else model.to(device)
    keep_unpacked(model)  # before the first forward pass, which tries the attention
    settle_attention(model, args, decisions, compute_dtype, attention.get("attn_implementation"))
    if is_quantized(model):
        decisions.fact("Quantisation", quantization_note(model))
    return model


def _without_masters(args: StageArguments) -> tuple[str, str]:
    if offloads(args):
        return "fp32, in CPU memory", "--optim_offload"
    kept = "compensates for rounding" if args.optim in COMPENSATING else "rounds stochastically"
    return "none", f"--pure_bf16: {args.optim} {kept}, so that small updates are kept"


# Batches


def collator_of(args: StageArguments, samples: Prepared, model: Any) -> PackingCollator | PaddingCollator:
    """The collator for rows, padded, or for packed sequences as this model's attention takes them."""
    padding = samples.tokenizer.pad_token_id
    is_flat = args.padding_free == "true" or args.sequence_parallel_size > 1
    if not (args.packing or is_flat):
        return PaddingCollator(padding, samples.template.media)
    one_sequence = takes_one_sequence(model)
    return PackingCollator(padding, flat=is_flat or one_sequence, with_segments=one_sequence)


def comparison_collator(
    args: StageArguments, samples: Prepared, model: Any, decisions: Decisions
) -> ComparisonCollator:
    """The collator for comparisons: each prompt once for all its responses, where the model's attention allows it.

    Raises:
        ModelError: `--share_prompt true`, and it does not.
    """
    padding = samples.tokenizer.pad_token_id
    asked = getattr(args, "share_prompt", "false")
    problem = "" if asked == "false" else why_not_shared(model, has_images=samples.template.media is not None)
    if asked == "true" and problem:
        raise ModelError(f"--share_prompt true: {problem}. Use --share_prompt false.")
    if asked != "false" and not problem:
        decisions.choose("Prompts", "computed once for all responses", "" if asked == "true" else "attention allows it")
        return ComparisonCollator(PackingCollator(padding, flat=True), shares_prompt=True)
    decisions.choose("Prompts", "computed for each response", problem)
    if args.packing or args.padding_free == "true" or args.sequence_parallel_size > 1:
        return ComparisonCollator(PackingCollator(padding, flat=True, with_segments=takes_one_sequence(model)))
    return ComparisonCollator(PaddingCollator(padding, samples.template.media))


def why_not_shared(model: Any, *, has_images: bool) -> str:
    """Why the prompt cannot be computed once for all its responses; "" where it can."""
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if has_images:
        return "images have no place in a shared prompt"
    if has_sharded_weights(model):
        return "the weights are sharded, so that it cannot be tried"
    if active_attention(model) != VARLEN:
        return (
            f"{name} runs with {active_attention(model)} attention, and only {VARLEN} reads the keys of a prompt twice"
        )
    was_training = model.training
    model.eval()
    try:
        return "" if shares_prompts(model) else f"{name} mixes positions by more than attention"
    except (TypeError, ValueError, RuntimeError) as err:
        return f"{name} cannot compute a shared prompt ({one_line(err, 120)})"
    finally:
        model.train(was_training)
