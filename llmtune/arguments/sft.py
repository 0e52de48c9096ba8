"""The arguments of `sft()` and `llmtune sft`: one dataclass, three spellings (Python, flags, YAML)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmtune.arguments.checks import Problems, check_common, fill_model, parse_train_args
from llmtune.arguments.groups import DataArguments, GenerationArguments, ModelArguments, QuantizationArguments

__all__ = ["SftArguments"]

DEFAULT_DATASET = "blossom-math-zh"
LEARNING_RATE = {"lora": 1e-4, "full": 2e-5}


@dataclass(kw_only=True)
class SftArguments(QuantizationArguments, GenerationArguments, DataArguments, ModelArguments):
    """Training"""

    output_dir: str = "output"
    """Folder of all runs; this one's is <output_dir>/<model_type>/v<N>-<time>."""
    resume_from_checkpoint: str | None = None
    """Checkpoint folder to go on from: model, optimizer, schedule, random state and place in the data."""
    num_train_epochs: float = 1
    """Passes over the training rows."""
    max_steps: int = -1
    """Optimizer steps in all; -1 leaves it to num_train_epochs."""
    batch_size: int = 1
    """Samples of one forward pass on one device."""
    eval_batch_size: int | None = None
    """The same in evaluation. Default: batch_size."""
    gradient_accumulation_steps: int = 16
    """Forward passes summed up to one optimizer step."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 1e-4 for lora, 2e-5 for full."""
    lr_scheduler_type: str = "cosine"
    """Course of the learning rate after the warm-up: cosine, linear, constant, and what transformers knows."""
    warmup_ratio: float = 0.05
    """Share of the steps in which the learning rate rises from 0."""
    optim: str = "adamw_torch"
    """Optimizer, by its name in transformers."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    neftune_noise_alpha: float | None = None
    """Strength of the noise on embeddings in training (NEFTune)."""
    group_by_length: bool = False
    """Put samples of like length into a batch."""
    dataloader_num_workers: int = 1
    """Processes that make batches; 0 uses the main one. On a CPU the main one is used unless you give a number."""
    test_oom_error: bool = False
    """Train on the longest samples first, to see at once whether memory suffices."""

    eval_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to evaluate."""
    eval_steps: int = 50
    """Optimizer steps between evaluations."""
    save_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to save a checkpoint."""
    save_steps: int | None = None
    """Optimizer steps between checkpoints. Default: eval_steps."""
    save_total_limit: int = 2
    """Checkpoints kept: the best, and the last ones; -1 keeps all."""
    only_save_model: bool | None = None
    """Leave out what resuming needs. Default: true for full, false for lora."""
    logging_steps: int = 5
    """Optimizer steps between log records."""
    predict_with_generate: bool = False
    """Evaluate by answers that the model writes (ROUGE, BLEU); the best checkpoint is then that of ROUGE-L."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where curves go besides logging.jsonl and images/: tensorboard or none."""

    lora_target_modules: list[str] = field(default_factory=list)
    """Linear layers that LoRA adapts, by name; ALL is every one but the head, DEFAULT the model entry's (the default)."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 32
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_dropout_p: float = 0.0
    """Share of an adapter's inputs that is dropped in training."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias terms are trained."""
    modules_to_save: list[str] = field(default_factory=list)
    """Layers that are trained and saved whole beside the adapters: embed_tokens, lm_head."""
    peft_path: str | None = None
    """Adapter folder to start from instead of fresh adapters."""

    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl"] | None = None
    """Backend of distributed training (comes with a later version)."""
    deepspeed_config_path: str | None = None
    """DeepSpeed configuration (comes with a later version)."""
    push_to_hub: bool = False
    """Push checkpoints to the hub (comes with a later version)."""
    hub_model_id: str | None = None
    """Name of the pushed model. Default: <model_type>-<sft_type>."""
    hub_private_repo: bool = True
    """Whether the pushed model is private."""
    push_hub_strategy: Literal["end", "push_best", "push_last", "checkpoint", "all_checkpoints"] = "push_best"
    """Which checkpoints are pushed, and when."""
    hub_token: str | None = None
    """Token of the hub. Default: the environment's MODELSCOPE_API_TOKEN. Never written to a file."""
    train_args: list[str] = field(default_factory=list)
    """Any other field of transformers' TrainingArguments, as key=value."""
    ignore_args_error: bool = False
    """Warn about unknown flags instead of stopping."""

    def __post_init__(self) -> None:
        problems = Problems()
        fill_model(self, problems)
        check_common(self, problems)
        self._check_training(problems)
        problems.raise_if_any()
        self._fill()

    def _check_training(self, problems: Problems) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "eval_steps", "logging_steps", "lora_rank"):
            problems.need(getattr(self, name) >= 1, f"--{name} must be 1 or more, not {getattr(self, name)}.")
        for name in ("save_steps", "eval_batch_size"):
            value = getattr(self, name)
            problems.need(value is None or value >= 1, f"--{name} must be 1 or more, not {value}.")
        problems.need(self.max_steps > 0 or self.num_train_epochs > 0, "--num_train_epochs must be above 0.")
        problems.need(0 <= self.warmup_ratio <= 1, f"--warmup_ratio is a share from 0 to 1, not {self.warmup_ratio}.")
        problems.need(
            self.learning_rate is None or self.learning_rate > 0,
            f"--learning_rate must be above 0, not {self.learning_rate}.",
        )
        problems.need(0 <= self.lora_dropout_p < 1, "--lora_dropout_p is a share from 0 to below 1.")
        full = self.sft_type == "full"
        problems.need(
            not (full and self.quantization_bit),
            "--quantization_bit needs --sft_type lora: quantised weights cannot be trained whole.",
        )
        problems.need(
            not (full and self.peft_path), "--peft_path starts from an adapter, which --sft_type full does not train."
        )
        problems.need(
            len(self.lora_target_modules) < 2 or not {"ALL", "DEFAULT"} & set(self.lora_target_modules),
            "--lora_target_modules takes ALL or DEFAULT alone, or names of layers.",
        )
        problems.need(
            not (self.resume_from_checkpoint and self.peft_path),
            "--resume_from_checkpoint already names the adapter; leave --peft_path away.",
        )
        problems.later(self.quantization_bit, "--quantization_bit")
        problems.later(self.deepspeed_config_path, "--deepspeed_config_path")
        problems.later(self.push_to_hub, "--push_to_hub")
        problems.later(self.ddp_backend, "--ddp_backend")
        for target in self.report_to:
            problems.need(
                target in ("tensorboard", "none"), f"--report_to {target} is not there yet; use tensorboard or none."
            )
        parse_train_args(self.train_args, problems)

    def _fill(self) -> None:
        self.dataset = self.dataset or [DEFAULT_DATASET]
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATE[self.sft_type]
        if self.save_steps is None:
            self.save_steps = self.eval_steps
        if self.eval_batch_size is None:
            self.eval_batch_size = self.batch_size
        if self.only_save_model is None:
            self.only_save_model = self.sft_type == "full"
        if self.hub_model_id is None:
            self.hub_model_id = f"{self.model_type}-{self.sft_type}"

    def unused_flags(self) -> list[str]:
        """Flags that were changed from their defaults and have no effect in this run."""
        lora_only = ("lora_target_modules", "lora_rank", "lora_alpha", "lora_dropout_p", "lora_bias", "modules_to_save")
        generation = tuple(GenerationArguments.__dataclass_fields__)
        quantization = ("bnb_4bit_comp_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        unused: list[str] = []
        if self.sft_type == "full":
            unused += self._changed(lora_only)
        if not self.predict_with_generate:
            unused += self._changed(generation)
        if not self.quantization_bit:
            unused += self._changed(quantization)
        return unused

    def _changed(self, names: tuple[str, ...]) -> list[str]:
        fields = SftArguments.__dataclass_fields__
        return [f"--{name}" for name in names if getattr(self, name) not in (fields[name].default, [])]
