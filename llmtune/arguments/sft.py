"""The arguments of `sft()` and `llmtune sft`: one dataclass, three spellings (Python, flags, YAML)."""

from __future__ import annotations

from dataclasses import dataclass

from llmtune.arguments.checks import (
    DEFAULT_DATASET,
    Problems,
    check_data,
    check_generation,
    fill_model,
    is_pattern,
    parse_train_args,
)
from llmtune.arguments.distributed import DistributedArguments, check_distributed
from llmtune.arguments.fields import settle_texts
from llmtune.arguments.groups import DataArguments, GenerationArguments, ModelArguments, QuantizationArguments
from llmtune.arguments.long_context import LongContextArguments, check_long_context
from llmtune.arguments.speed import AttentionArguments, SpeedArguments, check_attention
from llmtune.arguments.training_groups import (
    TRACKERS,
    EvaluationArguments,
    HubPushArguments,
    LoraArguments,
    TrainingFlags,
    VisionArguments,
)
from llmtune.models.info import AUTO, MODEL_MAPPING

__all__ = ["SftArguments"]

LEARNING_RATE = {"lora": 1e-4, "full": 2e-5, "adalora": 1e-3, "ia3": 3e-3, "vera": 4e-3}
VOCABULARY = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"}
CHECKPOINTING = ("auto", "full", "selective", "none")
OF_LORA = ("lora_alpha", "use_rslora", "use_dora", "lora_init", "lorap_lr_ratio")
OF_RANKS = ("lora_rank", "lora_dropout_p", "lora_bias")
OF_ADAPTERS = ("lora_target_modules", "modules_to_save")
OF_WHOLE_DATA = (
    *("dataset_test_ratio", "train_dataset_sample", "num_train_epochs", "group_by_length", "test_oom_error"),
    *("dataloader_num_workers", "dataset_seed"),
)


@dataclass(kw_only=True)
class SftArguments(
    HubPushArguments,
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
    ModelArguments,
):
    """Arguments of `sft()`. The help of each field stands below it, in the class that defines it.

    Raises:
        UsageError: All invalid or contradictory values at once. UnknownKeyError: No such model or template.
            Datasets are looked up when the run starts.
    """

    def __post_init__(self) -> None:
        settle_texts(self)
        if isinstance(self.gradient_checkpointing, bool):
            self.gradient_checkpointing = "full" if self.gradient_checkpointing else "none"
        problems = Problems()
        fill_model(self, problems)
        check_data(self, problems)
        check_generation(self, problems)
        self._check_training(problems)
        check_attention(self, self.attn_impl, problems)
        check_long_context(self, problems)
        problems.raise_if_any()
        self._fill()

    def _check_training(self, problems: Problems) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "eval_steps", "logging_steps", "lora_rank"):
            problems.need(getattr(self, name) >= 1, f"--{name} must be 1 or more, not {getattr(self, name)}.")
        problems.need(
            self.gradient_checkpointing in CHECKPOINTING,
            f"--gradient_checkpointing must be one of {', '.join(CHECKPOINTING)}, not {self.gradient_checkpointing!r}.",
        )
        for name in ("save_steps", "eval_batch_size"):
            value = getattr(self, name)
            problems.need(value is None or value >= 1, f"--{name} must be 1 or more, not {value}.")
        problems.need(
            self.max_steps == -1 or self.max_steps >= 1, f"--max_steps must be -1, or 1 or more, not {self.max_steps}."
        )
        for name in ("dataloader_num_workers", "max_restarts", "no_repeat_ngram_size"):
            problems.need(getattr(self, name) >= 0, f"--{name} must be 0 or more, not {getattr(self, name)}.")
        problems.need(self.max_steps > 0 or self.num_train_epochs > 0, "--num_train_epochs must be above 0.")
        problems.need(0 <= self.warmup_ratio <= 1, f"--warmup_ratio must be from 0 to 1, not {self.warmup_ratio}.")
        problems.need(
            self.learning_rate is None or self.learning_rate > 0,
            f"--learning_rate must be above 0, not {self.learning_rate}.",
        )
        problems.need(self.weight_decay >= 0, f"--weight_decay must be 0 or more, not {self.weight_decay}.")
        problems.need(self.max_grad_norm >= 0, f"--max_grad_norm must be 0 or more, not {self.max_grad_norm}.")
        problems.need(
            self.lora_alpha > 0,
            f"--lora_alpha must be above 0, not {self.lora_alpha}: the adapters would have no effect.",
        )
        problems.need(
            self.neftune_noise_alpha is None or self.neftune_noise_alpha >= 0,
            f"--neftune_noise_alpha must be 0 or more, not {self.neftune_noise_alpha}.",
        )
        problems.need(
            self.save_total_limit == -1 or self.save_total_limit >= 1,
            f"--save_total_limit must be 1 or more, or -1 for all, not {self.save_total_limit}.",
        )
        whole = VOCABULARY.intersection(self.modules_to_save)
        problems.need(
            not (self.new_special_tokens and whole),
            f"--new_special_tokens trains single rows of the embeddings, --modules_to_save {' '.join(sorted(whole))} "
            "all of them: remove one of the two.",
        )
        problems.need(
            0 <= self.lora_dropout_p < 1, f"--lora_dropout_p must be from 0 to below 1, not {self.lora_dropout_p}."
        )
        full = self.sft_type == "full"
        problems.need(
            not (full and self.quantization_bit),
            "--quantization_bit needs --sft_type lora or another adapter: quantised weights cannot be trained.",
        )
        problems.need(
            self.quant_method == "bnb" or self.quantization_bit in (0, 8),
            "--quant_method torchao supports 8 bits only: use --quantization_bit 8, or --quant_method bnb for 4.",
        )
        problems.need(
            not (full and self.peft_path), "--peft_path starts from an adapter, which --sft_type full does not train."
        )
        problems.need(
            len(self.lora_target_modules) < 2 or not {"ALL", "DEFAULT"} & set(self.lora_target_modules),
            "--lora_target_modules takes ALL, DEFAULT, or names of layers, not a mix.",
        )
        problems.need(
            not (self.resume_from_checkpoint and self.peft_path),
            "--resume_from_checkpoint restores the adapter: remove --peft_path.",
        )
        problems.need(
            not self.streaming or self.max_steps > 0,
            "--streaming true does not know the number of rows in advance: give the number of steps with --max_steps.",
        )
        problems.need(
            not self.packing or self.max_length != -1,
            "--packing true needs a finite --max_length, e.g. 2048: packed sequences have that length.",
        )
        problems.need(
            self.lorap_lr_ratio is None or self.lorap_lr_ratio > 0,
            f"--lorap_lr_ratio must be above 0, not {self.lorap_lr_ratio}.",
        )
        problems.need(
            self.lora_init == "default" or not (self.quantization_bit or self.use_dora),
            f"--lora_init {self.lora_init} modifies the base weights: remove --quantization_bit and --use_dora.",
        )
        problems.need(
            self.sft_type != "adalora" or not (self.resume_from_checkpoint or self.peft_path),
            "--sft_type adalora cannot resume: a checkpoint has the remaining ranks, not the history that pruned them.",
        )
        problems.need(
            not self.new_special_tokens or (self.sft_type in ("lora", "full") and not self.peft_path),
            "--new_special_tokens needs --sft_type lora or full, and no --peft_path.",
        )
        problems.need(self.freeze_layers >= 0, f"--freeze_layers must be 0 or more, not {self.freeze_layers}.")
        for text in self.freeze_parameters:
            problems.need(is_pattern(text), f"--freeze_parameters {text!r} is not a valid regular expression.")
        check_distributed(self, problems)
        for target in self.report_to:
            problems.need(target in TRACKERS, f"--report_to {target}: expected {', '.join(TRACKERS)}.")
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
            self.only_save_model = self.sft_type == "full" and not self.fsdp

    def step_size(self, processes: int) -> int:
        """Samples, or packs, per optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps * processes

    def unused_flags(self) -> list[str]:
        """Flags that differ from their defaults and have no effect in this run."""
        generation = tuple(GenerationArguments.__dataclass_fields__)
        quantization = ("bnb_4bit_comp_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
        hub = ("hub_model_id", "hub_private_repo", "push_hub_strategy")
        unused: list[str] = []
        if not self._may_have_vision():
            unused += self._changed(tuple(VisionArguments.__dataclass_fields__))
        if not self.push_to_hub:
            unused += self._changed(hub)
        ignored: dict[str, tuple[str, ...]] = {
            "lora": (),
            "adalora": OF_LORA[1:],
            "vera": OF_LORA,
            "ia3": OF_LORA + OF_RANKS,
            "full": OF_LORA + OF_RANKS + OF_ADAPTERS,
        }
        unused += self._changed(ignored[self.sft_type])
        if self.sft_type != "full":
            unused += self._changed(("freeze_layers", "freeze_parameters"))
        if self.peft_path is not None:
            unused += self._changed(("use_rslora", "use_dora", "lora_init"))
        if self.packing:
            unused += self._changed(("padding_free",))
        if self.packing or self.padding_free:
            unused += self._changed(("group_by_length",))
        if self.streaming:
            unused += self._changed(OF_WHOLE_DATA)
        if not self.predict_with_generate:
            unused += self._changed(generation)
        if self.quantization_bit != 4:
            unused += self._changed(quantization)
        if not self.quantization_bit:
            unused += self._changed(("quant_method",))
        return unused

    def _may_have_vision(self) -> bool:
        """Whether the model can have a vision tower."""
        return self.model_type == AUTO or "ForConditionalGeneration" in MODEL_MAPPING[str(self.model_type)].architecture

    def _changed(self, names: tuple[str, ...]) -> list[str]:
        fields = SftArguments.__dataclass_fields__
        return [f"--{name}" for name in names if getattr(self, name) not in (fields[name].default, [])]
