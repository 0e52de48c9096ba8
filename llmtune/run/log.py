"""What was decided for the user, and why: said when it is decided, and kept for the report."""

from __future__ import annotations

from llmtune.arguments.sft import SftArguments
from llmtune.distributed.ranks import is_distributed, world_size
from llmtune.utils.logging import get_logger

__all__ = ["Decisions", "first_decisions"]


class Decisions(list[str]):
    """Lines of a run's decisions."""

    def note(self, line: str) -> None:
        get_logger().info(line)
        self.append(line)


def first_decisions(args: SftArguments) -> Decisions:
    """Log what the flags come to on this machine, and warn of those that have no effect."""
    import torch

    decisions = Decisions()
    device = "the GPU" if torch.cuda.is_available() else "the CPU, since there is no GPU"
    decisions.note(f"Training runs on {device}.")
    decisions.note(f"Model {args.model_type}, template {args.template_type}, {args.sft_type} fine-tuning.")
    if args.tuner_backend == "swift":
        decisions.note("--tuner_backend swift is taken for peft.")
    items = "packs" if args.packing else "samples"
    size = f"{args.batch_size} x {args.gradient_accumulation_steps} {items} a step"
    many = f", in each of {world_size()} processes" if is_distributed() else ""
    decisions.note(f"Learning rate {args.learning_rate:g}, {size}{many}.")
    if args.optim is None and torch.cuda.is_available():
        decisions.note("Optimizer adamw_torch_fused: one kernel for all the weights.")
    for flag in args.unused_flags():
        get_logger().warning(f"{flag} has no effect in this run.")
    return decisions
