"""Run: the resolved start of a stage. All refusals by flags, configuration and files happen here, and only here.

`sft`, `check`, `plan`, `--dry_run` and `launch` go through it, so that each refuses what the others refuse.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtune.arguments.checks import check_sources
from llmtune.arguments.online import OnlineStage, check_groups
from llmtune.arguments.optimizers import need_optimizer
from llmtune.arguments.pretraining import PtArguments
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.training_groups import TRACKERS
from llmtune.distributed.deepspeed import need_deepspeed
from llmtune.distributed.launch import planned_processes
from llmtune.errors import ModelError, UsageError
from llmtune.models.info import MODEL_MAPPING, ModelInfo
from llmtune.run.folder import check_flat_folder
from llmtune.run.model_files import ModelFiles, find_model, noted
from llmtune.run.resume import resume_run
from llmtune.tuners.named_layers import check_named_layers, check_peft_path
from llmtune.utils.files import ensure_writable_folder
from llmtune.utils.system import missing_packages, need


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that passed all checks.

    Attributes:
        args: Arguments, those of the resumed checkpoint included.
        model: The files of its model.
        resume: The checkpoint that it resumes from; None for a new run.
        lacks: Missing packages and files, one line each; with `offline` only, else the first one is raised.
    """

    args: StageArguments
    model: ModelFiles
    resume: Path | None = None
    lacks: tuple[str, ...] = ()

    @property
    def info(self) -> ModelInfo:
        return MODEL_MAPPING[str(self.args.model_type)]

    @classmethod
    def resolve(cls, args: StageArguments, *, offline: bool = False) -> Run:
        """Check flags, configuration and files against each other.

        Args:
            offline: Nothing is downloaded or created, torch is not imported, and missing things are collected.

        Raises:
            LlmtuneError: The run would fail.
        """
        lacks: list[str] | None = [] if offline else None
        args, resume = resume_run(args)
        check_sources(args)
        if isinstance(args, PtArguments):
            args.check_files()
        if isinstance(args, OnlineStage):
            _check_groups(args)
        check_sharing(args)
        with noted(lacks):
            _need_quantizer(args)
        with noted(lacks):
            need_optimizer(args, planned_processes(args.nproc, os.environ))
        with noted(lacks):
            need_trackers(args.report_to)
        if args.deepspeed_config_path is not None:
            with noted(lacks):
                need_deepspeed()
        model = find_model(
            args, bits=args.quantization_bit, sft_type=args.sft_type, fp8_base=args.fp8_base, lacks=lacks
        )
        if args.rope_scaling is not None and model.folder is not None and not offline:
            _settle_rope(args, model.folder)
        if model.folder is not None and not offline and (reason := why_undivided(args, model.folder)):
            raise ModelError(f"--sequence_parallel_size does not work with {args.display_name()}: {reason}.")
        check_named_layers(args, model.folder)
        check_peft_path(args, model.folder)
        return cls(args=args, model=model, resume=resume, lacks=tuple(lacks or ()))

    def check_start(self) -> None:
        """Check the output folder, devices and processes of this start, which only training needs.

        Raises:
            LlmtuneError: The run cannot start here.
        """
        from llmtune.models.fp8 import check_fp8
        from llmtune.models.layers import check_kernels
        from llmtune.run.optimizer import check_optimizer_device
        from llmtune.run.training_arguments import check_processes

        check_kernels(self.args)
        if self.args.fp8_base:
            check_fp8()
        check_optimizer_device(self.args)
        parent = Path(self.args.output_dir).expanduser() if self.resume is None else self.resume.parent
        if self.args.output_dir_flat and self.resume is None:
            check_flat_folder(parent)
        ensure_writable_folder(parent, flag="--output_dir")
        check_processes(self.args)


def _check_groups(args: OnlineStage) -> None:
    processes = planned_processes(args.nproc, os.environ)
    if processes is not None and (problem := check_groups(args, processes)):
        raise UsageError(problem)


def check_sharing(args: StageArguments) -> None:
    """Check that the processes can be divided into groups that share their batches.

    Raises:
        UsageError: They cannot.
    """
    processes, size = planned_processes(args.nproc, os.environ), args.sequence_parallel_size
    if processes is not None and processes % size:
        what = "1 process" if processes == 1 else f"{processes} processes"
        raise UsageError(
            f"--sequence_parallel_size {size} divides the processes into groups of {size}, and the run has {what}: "
            f"give --nproc {size}, or a multiple of it."
        )


def why_undivided(args: StageArguments, folder: Path) -> str:
    """Why the processes of a group cannot share the attention heads; "" where they can, or nothing is shared."""
    if args.sequence_parallel_size == 1:
        return ""
    from llmtune.models.ports import native_config
    from llmtune.models.sequence_parallel import key_repeats

    config = native_config(folder, trust_remote_code=args.trust_remote_code).get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return ""  # the loaded model is tried
    try:
        key_repeats(heads, getattr(config, "num_key_value_heads", None) or heads, args.sequence_parallel_size)
    except ValueError as err:
        return str(err)
    return ""


def _settle_rope(args: StageArguments, folder: Path) -> None:
    from llmtune.models.ports import native_config
    from llmtune.models.rope import rope_factor

    config = native_config(folder, trust_remote_code=args.trust_remote_code)
    args.rope_factor = rope_factor(config, str(args.rope_scaling), args.rope_factor, args.max_length)


def _need_quantizer(args: StageArguments) -> None:
    from llmtune.models.quantization import need_bitsandbytes, need_torchao

    if args.quantization_bit and args.quant_method == "torchao":
        need_torchao()
    elif args.quantization_bit:
        need_bitsandbytes(f"--quantization_bit {args.quantization_bit}")


def need_trackers(report_to: Sequence[str]) -> None:
    """Raise MissingPackageError if a tracker is not installed; none is imported."""
    for name in report_to:
        if name == "tensorboard" and missing_packages([name]):  # both write the same files
            need("tensorboardX", f"--report_to {name}")
        elif TRACKERS[name]:
            need(TRACKERS[name], f"--report_to {name}", extra=name)
