"""Checks of a run before rows are encoded or weights loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from llmtune.arguments.checks import check_sources
from llmtune.arguments.sft import SftArguments
from llmtune.hub.settings import HubOptions
from llmtune.models.folder import model_folder
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.ports import native_config
from llmtune.models.prequantized import check_prequantized
from llmtune.models.quantization import is_bitsandbytes_optimizer, need_bitsandbytes, need_torchao
from llmtune.models.rope import rope_factor
from llmtune.run.folder import check_flat_folder
from llmtune.run.resume import resume_run
from llmtune.training.kernels import check_kernels
from llmtune.training.named_layers import check_named_layers, check_peft_path
from llmtune.training.strategy import check_processes
from llmtune.training.trackers import need_trackers
from llmtune.utils.files import ensure_writable_folder
from llmtune.utils.logging import get_logger

__all__ = ["check_model_files", "check_run", "preflight"]


def preflight(args: SftArguments) -> tuple[SftArguments, Path | None]:
    """Check all that flags, config and files show.

    Returns:
        The arguments of the run, and the checkpoint that it resumes from.

    Raises:
        LlmtuneError: The run would fail.
    """
    args, resume = check_run(args)
    check_kernels(args)
    parent = Path(args.output_dir).expanduser() if resume is None else resume.parent
    if args.output_dir_flat and resume is None:
        check_flat_folder(parent)
    ensure_writable_folder(parent, flag="--output_dir")
    need_trackers(args.report_to)
    check_processes(args)
    return args, resume


def check_run(args: SftArguments) -> tuple[SftArguments, Path | None]:
    """Check the run itself, without output folder and processes of this start: as `llmtune check` does."""
    args, resume = resume_run(args)
    check_sources(args)
    _check_bitsandbytes(args)
    assert args.model_type is not None
    hub = HubOptions(args.use_hf, args.model_revision, args.hub_token, args.cache_dir)
    folder = model_folder(MODEL_MAPPING[args.model_type], args.model_id_or_path, hub=hub, weights=False)
    check_model_files(args, folder)
    check_named_layers(args, folder)
    check_peft_path(args, folder)
    return args, resume


def check_model_files(args: SftArguments, folder: Path) -> None:
    """Check the model folder; sets the factor of `--rope_scaling`.

    Raises:
        LlmtuneError: The model cannot be trained with these settings.
    """
    check_prequantized(folder, sft_type=args.sft_type, quantization_bit=args.quantization_bit)
    if args.rope_scaling is not None:
        config = native_config(folder, trust_remote_code=args.trust_remote_code)
        args.rope_factor = rope_factor(config, args.rope_scaling, args.rope_factor, args.max_length)


def _check_bitsandbytes(args: SftArguments) -> None:
    if args.quantization_bit and args.quant_method == "torchao":
        need_torchao()
    elif args.quantization_bit:
        need_bitsandbytes(f"--quantization_bit {args.quantization_bit}")
    if args.optim is not None and is_bitsandbytes_optimizer(args.optim):
        need_bitsandbytes(f"--optim {args.optim}")
        if "paged" in args.optim and not torch.cuda.is_available():
            get_logger().warning("--optim %s does not page on a CPU: it works without paging.", args.optim)
