"""The flags of training alone, one small class a subject. The text below a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtune.arguments.fields import fixed, free, taken

__all__ = ["TRACKERS", "EvaluationArguments", "HubPushArguments", "LoraArguments", "TrainingFlags", "VisionArguments"]

TRACKERS = {name: name for name in ("tensorboard", "wandb", "swanlab", "mlflow", "trackio")} | {"none": ""}
"""What `--report_to` takes, and the package that it needs."""


@dataclass(kw_only=True)
class TrainingFlags:
    """Training."""

    output_dir: str = free("output")
    """Folder of all runs; this one's is <output_dir>/<model_type>/v<N>-<time>."""
    output_dir_flat: bool = free(False)
    """Put the files of the run into output_dir itself, without those of model and version. Also --add_version false."""
    resume_from_checkpoint: str | None = free(None)
    """Checkpoint to go on from, with optimizer, random state and place in the data; a run's folder, for its last whole
    one; or last, for that of the newest run."""
    num_train_epochs: float = taken(1)
    """Passes over the training rows."""
    max_steps: int = taken(-1)
    """Optimizer steps in all; -1 leaves it to num_train_epochs."""
    batch_size: int = taken(1)
    """Samples of one forward pass on one device."""
    eval_batch_size: int | None = taken(None)
    """The same in evaluation. Default: batch_size."""
    gradient_accumulation_steps: int = taken(16)
    """Forward passes summed up to one optimizer step."""
    learning_rate: float | None = taken(None)
    """Peak learning rate. Default: 1e-4 for lora, 2e-5 for full, 1e-3 for adalora, 3e-3 for ia3, 4e-3 for vera."""
    lr_scheduler_type: str = taken("cosine")
    """Course of the learning rate after the warm-up: cosine, linear, constant, and what transformers knows."""
    warmup_ratio: float = taken(0.05)
    """Share of the steps in which the learning rate rises from 0."""
    optim: str | None = fixed(None)
    """Optimizer, by its name in transformers. Default: adamw_torch_fused on a GPU, adamw_torch on a CPU."""
    weight_decay: float = taken(0.01)
    """Weight decay of AdamW."""
    max_grad_norm: float = taken(1.0)
    """Gradients are clipped to this norm."""
    freeze_layers: int = fixed(0)
    """Layers from the first that full fine-tuning leaves as they are."""
    freeze_parameters: list[str] = fixed(factory=list)
    """Regular expressions; full fine-tuning leaves alone the parameters in whose names they are found."""
    gradient_checkpointing: Literal["auto", "full", "selective", "none"] = taken("auto")
    """What backward computes again: full, nearly all, for the least memory; selective, all but products; none; auto, as
    little as memory allows. Also true (full) and false (none)."""
    neftune_noise_alpha: float | None = taken(None)
    """Strength of the noise on embeddings in training (NEFTune)."""
    packing: bool = fixed(False)
    """Fill sequences of max_length tokens with whole rows, which do not see each other; batch_size counts sequences."""
    padding_free: bool = fixed(False)
    """Make each batch one sequence of rows that do not see each other, instead of padding them."""
    group_by_length: bool = fixed(False)
    """Put samples of like length into a batch."""
    streaming: bool = fixed(False)
    """Read and encode rows while they are trained on, over and over until --max_steps; nothing is kept on the disk."""
    dataloader_num_workers: int = taken(1)
    """Processes that make batches; 0 uses the main one. On a CPU the main one is used unless you give a number."""
    on_nan: Literal["stop", "skip"] = taken("stop")
    """What happens at a step whose loss is no number or has run away: the run stops, or leaves the step out."""
    test_oom_error: bool = fixed(False)
    """Train on the longest samples first, to see at once whether memory suffices."""
    train_args: list[str] = fixed(factory=list)
    """Any other field of transformers' TrainingArguments, as key=value."""
    ignore_args_error: bool = free(False)
    """Warn about unknown flags instead of stopping."""


@dataclass(kw_only=True)
class EvaluationArguments:
    """Evaluation, saving, logging."""

    eval_strategy: Literal["steps", "epoch", "no"] = taken("steps")
    """When to evaluate."""
    eval_steps: int = taken(50)
    """Optimizer steps between evaluations."""
    save_strategy: Literal["steps", "epoch", "no"] = taken("steps")
    """When to save a checkpoint."""
    save_steps: int | None = taken(None)
    """Optimizer steps between checkpoints. Default: eval_steps."""
    save_total_limit: int = taken(2)
    """Checkpoints kept: the best and the last, and those before it; -1 keeps all."""
    only_save_model: bool | None = taken(None)
    """Leave out what resuming needs. Default: true for full without --fsdp, else false."""
    logging_steps: int = taken(5)
    """Optimizer steps between log records."""
    predict_with_generate: bool = fixed(False)
    """Evaluate by answers that the model writes (ROUGE, BLEU); the best checkpoint is then that of ROUGE-L."""
    report_to: list[str] = taken(factory=lambda: ["tensorboard"])
    """Where curves go besides logging.jsonl and images/: tensorboard, wandb, swanlab, mlflow, trackio; or none."""


@dataclass(kw_only=True)
class LoraArguments:
    """LoRA."""

    lora_target_modules: list[str] = fixed(factory=list)
    """Linear layers that LoRA adapts, by name; ALL is every one but the head. Default: DEFAULT, the model entry's."""
    lora_rank: int = fixed(8)
    """Rank of the adapters."""
    lora_alpha: int = fixed(32)
    """The adapters' output is scaled by lora_alpha / lora_rank."""
    lora_dropout_p: float = taken(0.0)
    """Share of an adapter's inputs that is dropped in training."""
    lora_bias: Literal["none", "all", "lora_only"] = fixed("none")
    """Which bias terms are trained."""
    lora_init: Literal["default", "pissa", "olora"] = fixed("default")
    """How LoRA begins: as no change, or with the main part of the weights (pissa by SVD, olora by QR), which learns."""
    use_rslora: bool = fixed(False)
    """Scale by lora_alpha / sqrt(lora_rank) instead, which suits high ranks."""
    use_dora: bool = fixed(False)
    """Train direction and magnitude of the weights apart (DoRA): a little better, and slower."""
    lorap_lr_ratio: float | None = fixed(None)
    """Learning rate of the matrices B, as a multiple of that of the matrices A (LoRA+); 16 is usual."""
    modules_to_save: list[str] = fixed(factory=list)
    """Layers that are trained and saved whole beside the adapters: embed_tokens, lm_head."""
    new_special_tokens: list[str] = fixed(factory=list)
    """Texts that become one token each, wherever they stand; their rows of embedding and head are trained and saved."""
    peft_path: str | None = free(None)
    """Adapter folder to start from instead of fresh adapters."""


@dataclass(kw_only=True)
class VisionArguments:
    """Models that see images."""

    freeze_vit: bool = fixed(True)
    """Leave the part that looks at images as it is; false trains it, too (all of its linear layers, under lora)."""
    freeze_aligner: bool = fixed(True)
    """Leave the layers as they are that carry what it sees into the language model; false trains them, too."""


@dataclass(kw_only=True)
class HubPushArguments:
    """Pushing to a hub."""

    push_to_hub: bool = free(False)
    """Push checkpoints to the hub."""
    hub_model_id: str | None = free(None)
    """Name of the pushed model. Default: <model_type>-<sft_type>."""
    hub_private_repo: bool = free(True)
    """Whether the pushed model is private."""
    push_hub_strategy: Literal["end", "push_best", "push_last", "checkpoint", "all_checkpoints"] = free("push_best")
    """Which checkpoints are pushed, and when."""
