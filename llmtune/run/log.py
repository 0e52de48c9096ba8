"""The block that a run logs before step 1: what is trained on what, and the settings chosen automatically."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.arguments.optimizers import offloads
from llmtune.arguments.pretraining import document_of, joins_documents
from llmtune.arguments.stage import StageArguments
from llmtune.distributed.ranks import world_size
from llmtune.models.devices import device_name
from llmtune.samples.blocks import blocks_text
from llmtune.samples.encode_report import EncodeReport, comparisons_text
from llmtune.samples.packing import packs_text
from llmtune.samples.prepare import Prepared, steps_per_epoch
from llmtune.samples.prompts import PromptSamples
from llmtune.samples.streaming import StreamedSamples
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from transformers import TrainingArguments


ORDER = (
    *("Model", "Device", "Distributed", "Data", "Streaming", "Comparisons", "Documents", "Packs", "Blocks"),
    *("Validation", "Training", "Trainable parameters", "Loss", "Reference", "Rollouts", "Rewards"),
    *("Batch", "Steps", "Optimizer", "Checkpoints", "Memory"),
)
"""Facts in the order of the block; others follow as they come."""


class Decisions(list[str]):
    """Settings that were chosen automatically, as lines `Name: value; why`, beside the facts of the run.

    `facts`: name -> text, those that flags asked for included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, str] = {}

    def fact(self, name: str, text: str) -> None:
        self.facts[name] = text

    def choose(self, name: str, value: str, why: str = "") -> None:
        """Note a setting and why it was chosen; without a reason, a flag asked for it, and it is a fact."""
        if why:
            self.append(f"{name}: {value}; {why}")
        else:
            self.fact(name, value)

    def fact_lines(self) -> list[str]:
        """`Name: text` of each fact."""
        names = [*(name for name in ORDER if name in self.facts), *(name for name in self.facts if name not in ORDER)]
        return [f"{name}: {self.facts[name]}" for name in names]

    def show(self) -> None:
        """Log the block."""
        lines = self.fact_lines()
        if self:
            lines += ["Chosen automatically:", *(f"  {line}" for line in self)]
        get_logger().info("%s", "\n".join(lines))


def first_decisions(args: StageArguments) -> Decisions:
    """Note the model, the device and what is trained; warn of flags without effect."""
    decisions = Decisions()
    decisions.fact("Model", f"{args.display_name()}, template {args.template_type}")
    decisions.choose("Device", device_name(), "" if accelerator().is_gpu else "there is no GPU")
    decisions.fact("Training", _training_text(args))
    if loss := args.loss_text():
        decisions.fact("Loss", loss)
    if args.tuner_backend == "swift":
        decisions.choose("Tuner backend", "peft", "--tuner_backend swift means peft")
    for flag in args.unused_flags():
        get_logger().warning(f"{flag} has no effect in this run.")
    return decisions


def _training_text(args: StageArguments) -> str:
    if args.sft_type == "full":
        return "full fine-tuning"
    if args.sft_type == "ia3":
        return "ia3 adapter"
    scale = f", alpha {args.lora_alpha}" if args.sft_type in ("lora", "adalora") else ""
    return f"{args.sft_type} adapter, rank {args.lora_rank}{scale}"


def note_steps(
    decisions: Decisions,
    args: StageArguments,
    arguments: TrainingArguments,
    prepared: Prepared,
    resume: Path | None,
) -> None:
    """Note batch arithmetic, steps and schedule."""
    num_steps = prepared.num_steps(args)
    unit = unit_of(args)
    factors = f"{args.batch_size} per device x {args.gradient_accumulation_steps} accumulation"
    factors += args.processes_text(world_size())
    decisions.fact("Batch", f"{args.step_size(world_size()):,} {unit} per optimizer step ({factors})")
    items = prepared.train_set
    epochs = (
        "" if isinstance(items, StreamedSamples) else f" ({num_steps / steps_per_epoch(len(items), args):.3g} epochs)"
    )
    text = f"{num_steps:,}{epochs}" if resume is None else f"{num_steps:,}{epochs}, resuming from {resume.name}"
    warmup = arguments.get_warmup_steps(num_steps)
    schedule = f"{arguments.lr_scheduler_type.value}, {warmup:,} warmup step{'' if warmup == 1 else 's'}"
    decisions.fact("Steps", f"{text}; learning rate {args.learning_rate:g}, {schedule}")
    optimizer = args.optim or str(getattr(arguments.optim, "value", arguments.optim))
    optimizer += ", fp32 master weights and states in CPU memory" if offloads(args) else ""
    clipping = f"gradient norm clipped to {args.max_grad_norm:g}" if args.max_grad_norm else "no gradient clipping"
    decisions.fact("Optimizer", f"{optimizer}, weight decay {args.weight_decay:g}, {clipping}")
    kept = "all kept" if args.save_total_limit == -1 else f"{args.save_total_limit} kept"
    saves = _interval(args.save_strategy, args.save_steps)
    evaluates = "never" if prepared.validation_tokens is None else _interval(args.eval_strategy, args.eval_steps)
    decisions.fact("Checkpoints", f"saved {saves}, {kept}; evaluated {evaluates}")


def _interval(strategy: str, steps: int | None) -> str:
    if strategy == "no":
        return "never"
    return "every epoch" if strategy == "epoch" else f"every {steps:,} steps and at the end"


def unit_of(args: StageArguments) -> str:
    """Name of the items of a batch."""
    if args.KIND == "prompts":
        return "responses"
    return "packs" if args.packing else "blocks" if joins_documents(args) else "samples"


def documents_text(report: EncodeReport) -> str:
    """Describe the documents of pre-training and their windows in one line; "" without any."""
    if not report.num_documents:
        return ""
    windows = f"{report.num_documents:,} in {report.num_windows:,} windows, {report.num_continued:,} of them in several"
    return f"{windows}; {report.num_bytes:,} bytes of trainable text"


# The training data, logged before the model is loaded


SHOWN_TOKENS = 400


def log_data(prepared: Prepared, args: StageArguments, decisions: Decisions) -> None:
    """Note the size of the data, and log the first sample with its loss mask."""
    from llmtune.samples.views import sample_views
    from llmtune.templates.mask_view import to_ansi

    log = get_logger()
    tokens = prepared.train_tokens
    report = tokens.report
    lengths = prepared.lengths
    share = report.num_trainable / max(report.num_tokens, 1)
    if isinstance(prepared.train_set, PromptSamples):
        _log_prompts(prepared, args, decisions)
        return
    decisions.fact(
        "Data",
        f"{len(tokens):,} samples, {report.num_tokens:,} tokens, {report.num_trainable:,} trainable ({share:.1%}); "
        f"length {lengths.min():,}-{lengths.max():,} tokens, mean {lengths.mean():.0f}",
    )
    count = 0 if prepared.validation_tokens is None else len(prepared.validation_tokens)
    decisions.fact("Validation", f"{count:,} sample{'' if count == 1 else 's'}" if count else "none")
    if isinstance(prepared.train_set, StreamedSamples):
        decisions.fact("Streaming", prepared.train_set.describe())
    if comparisons := comparisons_text(report):
        decisions.fact("Comparisons", comparisons)
    if documents := documents_text(report):
        decisions.fact("Documents", f"{documents}; of .txt files, each {document_of(args)} is one (--document)")
    if blocks := blocks_text(prepared.train_set):
        decisions.fact("Blocks", blocks)
    if packs := packs_text(prepared.train_set):
        decisions.fact("Packs", packs)
    if packs := packs_text(prepared.validation_set):
        decisions.facts["Validation"] += f" in {packs}"
    if prepared.validation_tokens is None and args.predict_with_generate:
        log.warning("--predict_with_generate has no effect in this run: there are no validation rows.")
    parts = [
        (f"[{name}] " if name else "") + to_ansi(views[:SHOWN_TOKENS], colour=False)
        for name, views in sample_views(prepared, 0)
    ]
    log.info("First sample (tokens in ⟦⟧ contribute to the loss):\n%s", "\n".join(parts))


def _log_prompts(prepared: Prepared, args: StageArguments, decisions: Decisions) -> None:
    """The same of prompts, which have no trainable tokens."""
    tokens = prepared.train_tokens
    lengths = tokens.lengths
    decisions.fact(
        "Data",
        f"{len(tokens):,} prompts of {lengths.min():,}-{lengths.max():,} tokens, mean {lengths.mean():.0f}",
    )
    count = 0 if prepared.validation_tokens is None else len(prepared.validation_tokens)
    heat = getattr(args, "eval_temperature", 0.0)
    how = f"answered at temperature {heat:g}" if heat else "answered greedily"
    decisions.fact("Validation", f"{count:,} prompt{'' if count == 1 else 's'}, {how}" if count else "none")
    text = prepared.tokenizer.decode(tokens[0]["input_ids"][-SHOWN_TOKENS:])
    get_logger().info("First prompt:\n%s", text)
