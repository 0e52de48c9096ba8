"""The arguments that every stage of training shares, composed of groups; a stage's own class adds what is its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llmtune.arguments.checks import DEFAULT_DATASET, fill_model, is_pattern, parse_train_args
from llmtune.arguments.fields import Only, Problems, Rule, check_rules, only, settle_texts, unused_flags
from llmtune.arguments.groups import (
    AttentionArguments,
    DataArguments,
    GenerationArguments,
    ModelArguments,
    PromptArguments,
    QuantizationArguments,
)
from llmtune.arguments.optimizers import check_optimizer, fill_optimizer
from llmtune.arguments.training_groups import (
    TRACKERS,
    CheckpointPushArguments,
    DistributedArguments,
    EvaluationArguments,
    LongContextArguments,
    LoraArguments,
    SpeedArguments,
    TrainingFlags,
    VisionArguments,
)
from llmtune.distributed.deepspeed import deepspeed_file, packaged_configs, zero_stage
from llmtune.errors import UsageError
from llmtune.models.info import AUTO, MODEL_MAPPING
from llmtune.types import RowKind


@dataclass(kw_only=True)
class StageArguments(
    CheckpointPushArguments,
    DistributedArguments,
    LongContextArguments,
    SpeedArguments,
    AttentionArguments,
    QuantizationArguments,
    GenerationArguments,
    VisionArguments,
    LoraArguments,
    EvaluationArguments,
    TrainingFlags,
    DataArguments,
    PromptArguments,
    ModelArguments,
):
    """Arguments of a stage. The help of each field stands below it, in the class that defines it.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
            Datasets are looked up when the run starts.
    """

    STAGE: ClassVar[str]
    """Name of the stage, as saved in checkpoints."""
    KIND: ClassVar[RowKind] = "conversations"
    """Kind of rows that the stage reads."""
    SCORES: ClassVar[bool] = False
    """Whether the model scores responses, instead of writing them."""
    LEARNING_RATES: ClassVar[dict[str, float]]
    """Default learning rate of the stage, by `--sft_type`."""

    ONLY: ClassVar[dict[Any, Only]] = {
        VisionArguments: only(may_have_vision=True),
        GenerationArguments: only(predict_with_generate=True),
    }
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.gradient_checkpointing in ("auto", "full", "selective", "none"),
            "--gradient_checkpointing must be one of auto, full, selective, none, not {gradient_checkpointing!r}.",
        ),
        Rule(
            lambda args: args.padding_free in ("auto", "true", "false"),
            "--padding_free must be one of auto, true, false, not {padding_free!r}.",
        ),
        Rule(
            lambda args: args.dataset_test_ratio < 1,
            "--dataset_test_ratio must be from 0 to below 1, not {dataset_test_ratio}.",
        ),
    )

    def __post_init__(self) -> None:
        settle_texts(self)
        if isinstance(self.gradient_checkpointing, bool):
            self.gradient_checkpointing = "full" if self.gradient_checkpointing else "none"
        if isinstance(self.padding_free, bool):
            self.padding_free = "true" if self.padding_free else "false"
        problems = Problems()
        fill_model(self, problems)
        check_rules(self, problems)
        _check_sharding(self, problems)
        for reason in self.why_unshared() if self.sequence_parallel_size > 1 else ():
            problems.need(False, f"--sequence_parallel_size {self.sequence_parallel_size}: {reason}.")
        check_optimizer(self, problems)
        for text in self.freeze_parameters:
            problems.need(is_pattern(text), f"--freeze_parameters {text!r} is not a valid regular expression.")
        for target in self.report_to:
            problems.need(target in TRACKERS, f"--report_to {target}: expected {', '.join(TRACKERS)}.")
        parse_train_args(self.train_args, problems)
        self._check(problems)
        problems.raise_if_any()
        self._fill()

    def _check(self, problems: Problems) -> None:
        """Check what a stage's own flags exclude."""

    def _fill(self) -> None:
        self.dataset = self.dataset or [DEFAULT_DATASET]
        if self.learning_rate is None:
            self.learning_rate = self.LEARNING_RATES[self.sft_type]
        if self.save_steps is None:
            self.save_steps = self.eval_steps
        if self.eval_batch_size is None:
            self.eval_batch_size = self.batch_size
        if self.only_save_model is None:
            self.only_save_model = self.sft_type == "full" and not self.fsdp
        fill_optimizer(self)

    def loss_text(self) -> str:
        """Describe what is minimised, where a stage has a choice."""
        return ""

    @classmethod
    def of_stage(cls) -> type[StageArguments]:
        """The class of the stage itself, without the flags that a command adds."""
        return next(one for one in cls.__mro__ if "STAGE" in vars(one) and issubclass(one, StageArguments))

    @property
    def concatenates(self) -> bool:
        """Whether a sequence may hold several samples, which must not attend to each other."""
        return self.packing or self.is_padding_free or self.sequence_parallel_size > 1

    @property
    def is_padding_free(self) -> bool:
        """Whether a batch becomes one sequence without padding; `auto` counts until the model has been tried."""
        if self.packing or self.padding_free != "auto":
            return not self.packing and self.padding_free == "true"
        return not self.why_padded()

    def why_padded(self) -> str:
        """Why `--padding_free auto` keeps the padding, by the flags alone; "" where the model decides."""
        if self.sequence_parallel_size > 1:
            return ""
        if self.KIND == "conversations" and max(self.batch_size, self.eval_batch_size or self.batch_size) == 1:
            return "batches hold one sample"
        if self.shift_attn:
            return "--shift_attn needs one sample per sequence"
        if self.neftune_noise_alpha:
            return "NEFTune's noise shrinks with the sequence length"
        if self.attn_impl in ("sdpa", "eager"):
            return f"--attn_impl {self.attn_impl} would separate samples by a mask"
        return ""

    def step_size(self, processes: int) -> int:
        """Samples, or packs, per optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps * self.data_ranks(processes)

    def processes_text(self, processes: int) -> str:
        """The last factor of `step_size`, as ` x 2 processes`; "" for one."""
        ranks, size = self.data_ranks(processes), self.sequence_parallel_size
        if size == 1:
            return f" x {ranks} processes" if ranks > 1 else ""
        return f" x {ranks} group{'' if ranks == 1 else 's'} of {size} processes"

    def data_ranks(self, processes: int) -> int:
        """How many of all processes, or groups of them under --sequence_parallel_size, have batches of their own."""
        return max(processes // self.sequence_parallel_size, 1)

    def why_unshared(self) -> list[str]:
        """Reasons why the flags exclude --sequence_parallel_size."""
        reasons = {
            f"it is for sft, pt, dpo and kto, and {self.STAGE} cannot share its sequences out": self.SCORES
            or self.KIND == "prompts",
            "--padding_free false keeps several rows in a batch, and one sequence is shared out: remove it": not (
                self.packing or self.padding_free != "false"
            ),
            f"--attn_impl {self.attn_impl} does not take the bounds of sequences: remove it, or give varlen or "
            "flash": self.attn_impl in ("sdpa", "eager"),
            "--shift_attn true attends within parts of a sequence: use one of them": self.shift_attn,
            "NEFTune's noise depends on the length of a sequence, of which each process has a part: remove "
            "--neftune_noise_alpha": bool(self.neftune_noise_alpha),
            "--device_map spreads one process over several GPUs: use one of them": self.device_map is not None,
            "--torch_compile true compiles layers, within which tokens are exchanged: use one of them": (
                self.torch_compile
            ),
        }
        return [text for text, holds in reasons.items() if holds]

    def unused_flags(self) -> list[str]:
        """Flags that differ from their defaults and have no effect in this run."""
        return unused_flags(self)

    @property
    def may_have_vision(self) -> bool:
        """Whether the model can have a vision tower."""
        return self.model_type == AUTO or "ForConditionalGeneration" in MODEL_MAPPING[str(self.model_type)].architecture


def _check_sharding(args: StageArguments, problems: Problems) -> None:
    """Check the file of `--deepspeed_config_path`, and what sharded weights exclude, by the stage that it names."""
    sharding = "--fsdp" if args.fsdp else ""
    if args.deepspeed_config_path is not None:
        try:
            sharding = "--deepspeed_config_path" if zero_stage(args.deepspeed_config_path) == 3 else sharding
        except UsageError as err:
            problems.need(False, str(err))
        problems.need(
            deepspeed_file(args.deepspeed_config_path) is not None,
            f"--deepspeed_config_path {args.deepspeed_config_path}: there is no such file. Give your own, or one of "
            f"llmtune's: {', '.join(packaged_configs())}.",
        )
    problems.need(
        not (sharding and (args.lora_init != "default" or args.sft_type == "adalora")),
        f"{sharding} shards the weights, which --lora_init {args.lora_init} and --sft_type adalora need unsharded: "
        "remove one of the two.",
    )
    problems.need(
        not (sharding and args.fp8_base),
        f"{sharding} shards the weights, which --fp8_base true needs unsharded: remove one of the two; zero2 and DDP "
        "work with it.",
    )


# The arguments of `sft()` and `llmtune sft`: one dataclass, three spellings (Python, flags, YAML)


@dataclass(kw_only=True)
class SftArguments(StageArguments):
    """Arguments of `sft()`: those that every stage has.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
            Datasets are looked up when the run starts.
    """

    STAGE = "sft"
    LEARNING_RATES: ClassVar[dict[str, float]] = {
        "lora": 1e-4, "full": 2e-5, "adalora": 1e-3, "ia3": 3e-3, "vera": 4e-3,
    }  # fmt: skip
