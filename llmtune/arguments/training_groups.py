"""Flags of training only, one class per subject. The text below a field is its help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from llmtune.arguments.fields import Rule, above, at_least, between, fixed, free, only, taken
from llmtune.arguments.groups import HubPushArguments, RopeArguments

TRACKERS = {name: name for name in ("tensorboard", "wandb", "swanlab", "mlflow", "trackio")} | {"none": ""}
"""Choices of `--report_to`, with the package that each needs."""


WITH_ADAPTERS = only(sft_type=("lora", "adalora", "vera", "ia3"))
WITH_RANKS = only(sft_type=("lora", "adalora", "vera"))
LORA_OR_ADALORA = only(sft_type=("lora", "adalora"))
VOCABULARY = {"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"}


@dataclass(kw_only=True)
class TrainingFlags:
    """Training."""

    output_dir: str = free("output")
    """Folder of all runs; this run goes to <output_dir>/<model_type>/v<N>-<time>."""
    output_dir_flat: bool = free(False)
    """Write the run into output_dir itself, without subfolders for model and version. Also --add_version false."""
    run_name: str | None = free(None)
    """Name of the run: its folder is <output_dir>/<model_type>/v<N>-<run_name>, and trackers show it."""
    resume_from_checkpoint: str | None = free(None)
    """Checkpoint to resume from, with optimizer, RNG state and position in the data; a run folder: its last complete
    checkpoint; last: that of the newest run."""
    num_train_epochs: float = taken(1, only=only(streaming=False))
    """Number of epochs over the training rows."""
    max_steps: int = taken(-1, within=at_least(1, also=-1))
    """Total optimizer steps; -1: by num_train_epochs."""
    batch_size: int = taken(1, within=at_least(1))
    """Samples per device per forward pass (micro-batch size)."""
    eval_batch_size: int | None = taken(None, within=at_least(1))
    """Samples per device per forward pass in evaluation. Default: batch_size."""
    gradient_accumulation_steps: int = taken(16, within=at_least(1))
    """Micro-batches accumulated per optimizer step."""
    learning_rate: float | None = taken(None, within=above(0))
    """Peak learning rate. Default: 1e-4 for lora, 2e-5 for full, 1e-3 for adalora, 3e-3 for ia3, 4e-3 for vera."""
    lr_scheduler_type: str = taken("cosine")
    """Learning-rate schedule after warmup: cosine, linear, constant, or any name transformers accepts."""
    warmup_ratio: float = taken(0.05, within=between(0, 1))
    """Fraction of the steps over which the learning rate warms up from 0."""
    optim: str | None = fixed(None)
    """Optimizer, by its transformers name, or muon (full fine-tuning: Muon for the matrices of the layers, AdamW for
    the rest). Default: adamw_torch_fused on GPU, adamw_torch on CPU."""
    pure_bf16: bool = fixed(False, only=only(sft_type="full"))
    """Full fine-tuning: weights and gradients in bf16 without fp32 master weights, updates rounded stochastically
    (--optim adamw_torch_8bit, its default, or adamw_torch_4bit) or compensated (stable_adamw)."""
    optim_offload: bool = fixed(False, only=only(sft_type="full"))
    """Full fine-tuning on one GPU: fp32 master weights and AdamW's states in CPU memory, where the step runs."""
    weight_decay: float = taken(0.01, within=at_least(0))
    """Weight decay of AdamW."""
    max_grad_norm: float = taken(1.0, within=at_least(0))
    """Gradient clipping: maximum norm."""
    freeze_layers: int = fixed(0, within=at_least(0), only=only(sft_type="full"))
    """Full fine-tuning: number of layers to freeze, counted from the first."""
    freeze_parameters: list[str] = fixed(factory=list, only=only(sft_type="full"))
    """Full fine-tuning: freeze the parameters whose names match any of these regular expressions."""
    gradient_checkpointing: Literal["auto", "full", "selective", "none"] = taken("auto")
    """Activations recomputed in backward: full (least memory), selective (keeps matmul outputs), none, auto (as little
    as memory allows). Also true (full) and false (none)."""
    neftune_noise_alpha: float | None = taken(None, within=at_least(0))
    """NEFTune: scale of the noise added to the embeddings in training."""
    packing: bool = fixed(False)
    """Pack samples into sequences of max_length tokens; packed samples do not attend to each other. batch_size then
    counts sequences."""
    padding_free: Literal["auto", "true", "false"] = taken("auto", only=only(packing=False))
    """Concatenate each batch into one sequence instead of padding; its samples do not attend to each other. auto:
    wherever the model's attention separates them without a mask."""
    group_by_length: bool = fixed(False, only=only(packing=False, padding_free=("auto", "false"), streaming=False))
    """Batch samples of similar length together."""
    streaming: bool = fixed(False)
    """Read and encode rows during training, over and over until --max_steps; nothing is cached on disk."""
    dataloader_num_workers: int = taken(1, within=at_least(0), only=only(streaming=False))
    """DataLoader worker processes; 0: the main process. On CPU: 0 unless set."""
    on_nan: Literal["stop", "skip"] = taken("stop")
    """If the loss is NaN or infinite, or diverges: stop, or skip the step."""
    test_oom_error: bool = fixed(False, only=only(streaming=False))
    """Train on the longest samples first, so that running out of memory shows at once."""
    train_args: list[str] = fixed(factory=list)
    """Any other field of transformers' TrainingArguments, as key=value."""
    ignore_args_error: bool = free(False)
    """Warn about unknown flags instead of stopping."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(lambda args: args.max_steps > 0 or args.num_train_epochs > 0, "--num_train_epochs must be above 0."),
        Rule(
            lambda args: args.run_name is None or re.fullmatch(r"\w[\w.-]{0,79}", args.run_name),
            "--run_name {run_name!r} names a folder: give up to 80 letters, digits, dots, dashes and underscores.",
        ),
        Rule(
            lambda args: not args.streaming or args.max_steps > 0,
            "--streaming true does not know the number of rows in advance: give the number of steps with --max_steps.",
        ),
        Rule(
            lambda args: not args.packing or args.max_length != -1,
            "--packing true needs a finite --max_length, e.g. 2048: packed sequences have that length.",
        ),
    )


@dataclass(kw_only=True)
class EvaluationArguments:
    """Evaluation, saving, logging."""

    eval_strategy: Literal["steps", "epoch", "no"] = taken("steps")
    """When to evaluate."""
    eval_steps: int = taken(50, within=at_least(1))
    """Optimizer steps between evaluations."""
    save_strategy: Literal["steps", "epoch", "no"] = taken("steps")
    """When to save a checkpoint."""
    save_steps: int | None = taken(None, within=at_least(1))
    """Optimizer steps between checkpoints. Default: eval_steps."""
    save_total_limit: int = taken(2, within=at_least(1, also=-1, meaning="all"))
    """Number of checkpoints to keep: the best, the last, and those before it; -1: all."""
    only_save_model: bool | None = taken(None)
    """Save no optimizer or RNG state (the run cannot be resumed). Default: true for full without --fsdp, else false."""
    logging_steps: int = taken(5, within=at_least(1))
    """Optimizer steps between log lines."""
    predict_with_generate: bool = fixed(False)
    """Evaluate on generations (ROUGE, BLEU); the best checkpoint is then the one with the highest ROUGE-L."""
    early_stopping_patience: int | None = taken(None, within=at_least(1))
    """Stop after this many evaluations in a row without a new best one."""
    watch_prompts: list[str] = free(factory=list)
    """Prompts whose responses are written to samples.jsonl at each evaluation: texts, or a file of rows; none: no
    responses. Default: four validation rows."""
    report_to: list[str] = taken(factory=lambda: ["tensorboard"])
    """Trackers besides logging.jsonl and images/: tensorboard, wandb, swanlab, mlflow, trackio; or none."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.early_stopping_patience is None or "no" not in (args.eval_strategy, args.save_strategy),
            "--early_stopping_patience compares evaluations, and keeps the best checkpoint: it needs --eval_strategy "
            "and --save_strategy.",
        ),
    )


@dataclass(kw_only=True)
class LoraArguments:
    """LoRA."""

    lora_target_modules: list[str] = fixed(factory=list, only=WITH_ADAPTERS)
    """Linear layers to adapt, by name; ALL: every one but the LM head. Default: DEFAULT, the model entry's."""
    lora_rank: int = fixed(8, within=at_least(1), only=WITH_RANKS)
    """Rank of the adapters (r)."""
    lora_alpha: int = fixed(32, within=above(0, why="the adapters would have no effect"), only=LORA_OR_ADALORA)
    """LoRA alpha: the adapters' output is scaled by lora_alpha / lora_rank."""
    lora_dropout_p: float = taken(0.0, within=between(0, 1, open_high=True), only=WITH_RANKS)
    """Dropout on the adapters' inputs."""
    lora_bias: Literal["none", "all", "lora_only"] = fixed("none", only=WITH_RANKS)
    """Bias terms to train."""
    lora_init: Literal["default", "pissa", "olora"] = fixed("default", only=only(sft_type="lora", peft_path=None))
    """LoRA initialisation: default (B = 0), pissa (the weight's principal singular vectors) or olora (its QR
    factors)."""
    use_rslora: bool = fixed(False, only=only(sft_type="lora", peft_path=None))
    """Rank-stabilised LoRA: scale by lora_alpha / sqrt(lora_rank), for high ranks."""
    use_dora: bool = fixed(False, only=only(sft_type="lora", peft_path=None))
    """DoRA: train direction and magnitude of the weights separately; slower, often slightly better."""
    lorap_lr_ratio: float | None = fixed(None, within=above(0), only=only(sft_type="lora"))
    """LoRA+: learning rate of the B matrices as a multiple of that of the A matrices; 16 is common."""
    modules_to_save: list[str] = fixed(factory=list, only=WITH_ADAPTERS)
    """Modules trained and saved in full besides the adapters: embed_tokens, lm_head."""
    new_special_tokens: list[str] = fixed(factory=list)
    """Strings to add as special tokens, one token each; their embedding and head rows are trained and saved."""
    peft_path: str | None = free(None)
    """Adapter folder to start from instead of a fresh adapter."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: args.sft_type != "full" or not args.quantization_bit,
            "--quantization_bit needs --sft_type lora or another adapter: quantised weights cannot be trained.",
        ),
        Rule(
            lambda args: args.sft_type != "full" or not args.peft_path,
            "--peft_path starts from an adapter, which --sft_type full does not train.",
        ),
        Rule(
            lambda args: len(args.lora_target_modules) < 2 or not {"ALL", "DEFAULT"} & set(args.lora_target_modules),
            "--lora_target_modules takes ALL, DEFAULT, or names of layers, not a mix.",
        ),
        Rule(
            lambda args: not (args.resume_from_checkpoint and args.peft_path),
            "--resume_from_checkpoint restores the adapter: remove --peft_path.",
        ),
        Rule(
            lambda args: args.lora_init == "default" or not (args.quantization_bit or args.use_dora),
            "--lora_init {lora_init} modifies the base weights: remove --quantization_bit and --use_dora.",
        ),
        Rule(
            lambda args: args.sft_type != "adalora" or not (args.resume_from_checkpoint or args.peft_path),
            "--sft_type adalora cannot resume: a checkpoint has the remaining ranks, not the history that pruned them.",
        ),
        Rule(
            lambda args: not args.new_special_tokens or (args.sft_type in ("lora", "full") and not args.peft_path),
            "--new_special_tokens needs --sft_type lora or full, and no --peft_path.",
        ),
        Rule(
            lambda args: not (args.new_special_tokens and VOCABULARY & set(args.modules_to_save)),
            "--new_special_tokens trains single rows of the embeddings, --modules_to_save {modules_to_save} all of "
            "them: remove one of the two.",
        ),
    )


@dataclass(kw_only=True)
class VisionArguments:
    """Vision-language models."""

    freeze_vit: bool = fixed(True)
    """Freeze the vision tower; false: train it too (under lora, all of its linear layers)."""
    freeze_aligner: bool = fixed(True)
    """Freeze the projector between vision tower and language model; false: train it too."""


@dataclass(kw_only=True)
class CheckpointPushArguments(HubPushArguments):
    """Pushing checkpoints."""

    push_hub_strategy: Literal["end", "push_best", "push_last", "checkpoint", "all_checkpoints"] = free(
        "push_best", only=only(push_to_hub=True)
    )
    """Which checkpoints are pushed, and when."""


@dataclass(kw_only=True)
class SpeedArguments:
    """Kernels."""

    use_liger: bool = taken(False)
    """Use Liger kernels for norms, RoPE and activations (GPU only); the loss stays llmtune's."""
    use_kernels: bool = taken(False)
    """Replace layers by kernels from Hugging Face's kernel hub (GPU and hub access needed)."""
    torch_compile: bool = taken(False)
    """Compile the decoder layers: minutes before the first step, faster steps after it."""
    fp8_base: bool = fixed(False)
    """Adapters: compute the frozen linear layers in fp8, faster on NVIDIA GPUs from Ada on (compute capability 8.9)."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.fp8_base and args.sft_type == "full"),
            "--fp8_base true rounds frozen weights, and --sft_type full trains them: use --sft_type lora, or remove "
            "--fp8_base.",
        ),
        Rule(
            lambda args: not (args.fp8_base and args.quantization_bit),
            "--fp8_base true and --quantization_bit {quantization_bit} both round the frozen weights: remove one of "
            "the two.",
        ),
        Rule(
            lambda args: not args.fp8_base or (args.lora_init == "default" and not args.use_dora),
            "--fp8_base true keeps the base's weights in fp8 alone, and --use_dora and --lora_init pissa and olora "
            "need them unrounded: remove one of the two.",
        ),
    )


@dataclass(kw_only=True)
class LongContextArguments(RopeArguments):
    """Long context."""

    shift_attn: bool = fixed(False)
    """LongLoRA's shifted sparse attention in training: groups of max_length / 4 tokens, half of the heads shifted by
    half a group."""
    sequence_parallel_size: int = free(1, within=at_least(1))
    """Processes that share each batch (Ulysses sequence parallelism): each computes a part of its tokens, and keeps the
    activations of that part alone. Their number divides --nproc and the attention heads."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.shift_attn and (args.packing or args.padding_free == "true")),
            "--shift_attn true needs one sample per sequence: remove --packing and --padding_free.",
        ),
        Rule(
            lambda args: not args.shift_attn or args.attn_impl in (None, "sdpa"),
            "--shift_attn true has its own attention, based on sdpa: remove --attn_impl {attn_impl}.",
        ),
        Rule(
            lambda args: not (args.shift_attn and args.use_flash_attn),
            "--shift_attn true has its own attention, based on sdpa: remove --use_flash_attn.",
        ),
        Rule(
            lambda args: not args.shift_attn or args.max_length != -1,
            "--shift_attn true needs a finite --max_length, e.g. 8192: its groups are a quarter of it.",
        ),
    )


# Flags of distributed training, and what they exclude


@dataclass(kw_only=True)
class DistributedArguments:
    """Distributed training."""

    nproc: int = free(1, within=at_least(0))
    """Processes on this machine, one per device; above 1, torchrun starts them. 0: one per GPU."""
    max_restarts: int = free(0, within=at_least(0))
    """With --nproc: how often to restart all processes after one has died; they resume from the last checkpoint."""
    ddp_backend: Literal["nccl", "hccl", "xccl", "gloo", "mpi", "ccl"] | None = free(None)
    """Backend of torch.distributed. Default: nccl on NVIDIA and AMD GPUs, hccl on Ascend NPUs, xccl on Intel GPUs, gloo
    on CPUs."""
    deepspeed_config_path: str | None = free(None)
    """DeepSpeed: a JSON file, or one of llmtune's own: zero2, zero3, zero2_offload, zero3_offload."""
    fsdp: bool = fixed(False)
    """Shard weights, gradients and optimizer state over the processes (PyTorch FSDP2)."""
    fsdp_offload: bool = free(False)
    """With --fsdp: keep the shards in CPU memory while the GPU does not need them."""
    async_save: bool = free(False)
    """With --fsdp: write checkpoint shards in the background, from a copy in CPU memory."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda args: not (args.device_map and (args.fsdp or args.deepspeed_config_path)),
            "--device_map places whole layers on GPUs, --fsdp and --deepspeed_config_path shard them: use one of them.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.deepspeed_config_path),
            "--fsdp and --deepspeed_config_path both shard the model: use one of them.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.only_save_model),
            "--fsdp saves each rank's shards together with the optimizer state: remove --only_save_model true.",
        ),
        Rule(
            lambda args: not (args.fsdp and args.quantization_bit == 8),
            "--fsdp cannot shard 8-bit weights: use --quantization_bit 4, or remove --fsdp.",
        ),
        Rule(
            lambda args: not (args.on_nan == "skip" and args.deepspeed_config_path),
            "--on_nan skip does not work with --deepspeed_config_path, which updates the weights within the backward "
            "pass: remove it, and a NaN loss stops the run.",
        ),
        Rule(
            lambda args: not args.async_save or (args.fsdp and not args.push_to_hub),
            "--async_save needs --fsdp, whose shards it writes in the background, and excludes --push_to_hub.",
        ),
    )
