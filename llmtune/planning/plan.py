"""`llmtune plan`: what a run would cost, and whether it fits, before any weight is loaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmtune.errors import HubError, LlmtuneError, ModelError, UsageError
from llmtune.models.gpus import Card, card_of_device, gib
from llmtune.models.info import MODEL_MAPPING
from llmtune.models.loading import dtype_name, resolve_dtype
from llmtune.planning.auto import CPU_SHARE, free_memory, least_checkpointing
from llmtune.planning.memory import Estimate, Estimator
from llmtune.planning.sharding import sharding_of
from llmtune.planning.suggestions import Suggestion, suggest
from llmtune.planning.workload import Rows, Workload, rows_of
from llmtune.run.resolved import Run
from llmtune.samples.prepare import prepare
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments

__all__ = ["Plan", "make_plan"]

USUAL_MFU = 0.4
"""Share of a card's peak that well-set-up fine-tuning reaches."""


@dataclass(frozen=True)
class Plan:
    """What a run would cost.

    Attributes:
        args: With what `auto` comes to.
        ranks, spread: Processes, and the devices that the layers of each are spread over.
        limit: Bytes that one device offers.
        suggestions: Where it does not fit: flags that would help.
    """

    args: SftArguments
    dtype: str
    estimate: Estimate
    workload: Workload
    ranks: int
    spread: int
    limit: float
    device: str
    tflops: float
    suggestions: list[Suggestion]
    notes: list[str]

    @property
    def fits(self) -> bool:
        return self.estimate.total <= self.limit

    @property
    def flops(self) -> float:
        work = self.workload
        return self.estimate.flops.of(work.computed, work.learned, work.contexts)

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that are kept at a time, one more while it is written."""
        args, steps = self.args, self.workload.steps
        if args.save_strategy == "no":
            return 0
        kept = args.save_total_limit if args.save_total_limit > 0 else 1_000_000
        if steps is not None and args.save_strategy == "steps":
            kept = min(kept, max(-(-steps // int(args.save_steps or 1)), 1))
        return sum(self.estimate.saved) * (min(kept, 1000) + 1)

    def rows(self) -> dict[str, str]:
        """The plan as a table: name, text."""
        one, work, args = self.estimate, self.workload, self.args
        size = f"{work.batch.size} x {work.batch.length:,} tokens"
        table = {
            "model": f"{args.display_name()}, {args.sft_type} fine-tuning, computed in {self.dtype}",
            "parameters": f"{one.parameters:,}, of which {one.trainable:,} trained "
            f"({one.trainable / max(one.parameters, 1):.2%})",
            "largest batch": f"{size} on a device, gradient checkpointing {args.gradient_checkpointing}",
            "steps": "not known without the rows" if work.steps is None else f"{work.steps:,}",
        }
        if work.steps is not None:
            table["tokens"] = f"{work.useful:,}, with padding {work.computed:,}, learned {work.learned:,}"
            table["FLOPs"] = f"{self.flops:.3g}{self._duration()}"
        table["a checkpoint"] = gib(sum(one.saved)) + (
            "" if args.only_save_model else f", of which {gib(one.saved[1])} for resuming"
        )
        table["disk space"] = f"{gib(self.disk)} for the checkpoints that are kept, and one being written"
        table |= {
            self._whose_memory(): "",
            "  weights": gib(one.weights),
            "  gradients": gib(one.gradients),
            "  optimizer": gib(one.optimizer),
            "  activations": gib(one.activations),
            "  logits and loss": gib(one.logits),
            "  in all": f"{gib(one.total)}, of {gib(self.limit)} that {self.device} offers",
        }
        return table | {"fits": "yes" if self.fits else "NO"}

    def _whose_memory(self) -> str:
        if self.ranks * self.spread == 1:
            return "memory"
        which = "each" if self.spread == 1 else "the fullest"
        return f"memory of {which} of {self.ranks * self.spread} devices"

    def _duration(self) -> str:
        if not self.tflops:
            return ""
        hours = self.flops / (self.tflops * 1e12 * USUAL_MFU * self.ranks) / 3600
        text = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        return f", about {text} at {USUAL_MFU:.0%} of the peak of {self.device}"


def make_plan(args: SftArguments, card: Card | None = None, cards: int = 1) -> Plan:
    """Plan a run.

    Args:
        card: The GPU to plan for. None: this machine's, or its memory where it has none.
        cards: How many of them a machine has; --device_map divides them among its processes.

    Raises:
        LlmtuneError: As `sft` would, of what it looks at before weights.
        UsageError: The model's own code looks at numbers, so that it cannot be traced; --device_map has one device.
    """
    run = Run.resolve(args)
    args, info, folder = run.args, run.info, run.args.folder()
    notes: list[str] = []
    rows = _rows(args, folder, notes)
    limit, device, tflops = _device(card)
    dtype = _dtype(args, card)
    estimator = Estimator(info, folder, dtype, on_gpu=card is not None or torch.cuda.is_available())

    gpus = torch.cuda.device_count() if card is None else cards

    def total_of(one: SftArguments) -> int:
        sharding = sharding_of(one, gpus)
        return estimator.estimate(one, Workload.of(one, rows, sharding.ranks).batch, sharding).total

    sharding = sharding_of(args, gpus)
    if args.device_map and sharding.spread == 1:
        raise UsageError(
            f"--device_map {args.device_map} spreads a process's layers over several GPUs, and each has "
            f"{gpus // sharding.ranks or 'none'}. Say how many a machine has: --gpu {2 * sharding.ranks}x24GB, say."
        )
    work = Workload.of(args, rows, sharding.ranks)
    try:
        if args.gradient_checkpointing == "auto":
            args = copy.copy(args)
            mode, _ = least_checkpointing(args, total_of, limit)
            args.gradient_checkpointing = mode
            notes.append(f"--gradient_checkpointing auto comes to {mode} there.")
        estimate = estimator.estimate(args, work.batch, sharding)
        suggestions = suggest(args, total_of, limit) if estimate.total > limit else []
    except LlmtuneError:
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError, IndexError) as err:
        reason = " ".join(str(err).split())[:200] or type(err).__name__
        raise UsageError(
            f"The code of {args.display_name()} cannot be traced without numbers, so its memory is not known: {reason}."
        ) from err
    if cards > sharding.ranks * sharding.spread:
        notes.append(f"Of {cards} cards, some are idle: --nproc {cards} or --device_map auto uses all of them.")
    if args.device_map == "sequential":
        notes.append("--device_map sequential fills the first GPU first; the figures are those of auto.")
    if read_json(folder / "config.json").get("vision_config"):
        notes.append("The activations of images are not counted: the figures are those of rows of text.")
    shared = (sharding.ranks, sharding.spread)
    return Plan(args, dtype_name(dtype), estimate, work, *shared, limit, device, tflops, suggestions, notes)


def _rows(args: SftArguments, folder: Path, notes: list[str]) -> Rows | None:
    if not any(folder.glob("*tokenizer*")) and args.tokenizer_id_or_path is None:
        notes.append(f"{folder} has no tokenizer, so each row is taken for one of --max_length tokens.")
        return None
    try:
        return rows_of(prepare(args))
    except (HubError, ModelError) as err:
        get_logger().warning("The rows cannot be looked at: %s", err)
        notes.append("The rows are not at hand, so each is taken for one of --max_length tokens.")
        return None


def _device(card: Card | None) -> tuple[float, str, float]:
    """Bytes that can be filled, what the device is called, its TFLOP/s (0: not known)."""
    if card is not None:
        return card.usable, f"a {card.name}", card.tflops
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known: Any = card_of_device(name)
        return free_memory() * (1 - 0.04), f"the {name} here", known.tflops if known else 0.0
    return free_memory() * CPU_SHARE, "the memory of this machine, which has no GPU,", 0.0


def _dtype(args: SftArguments, card: Card | None) -> torch.dtype:
    """As `resolve_dtype` would have it on the machine that is planned for."""
    info = MODEL_MAPPING[str(args.model_type)]
    if card is not None and args.dtype is None and info.torch_dtype is None:
        return torch.bfloat16 if card.bf16 else torch.float16
    return resolve_dtype(info, args.dtype)[0]
