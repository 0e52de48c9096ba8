"""Optimizers that transformers does not have, or that need more than it gives them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from llmtune.arguments.optimizers import ROUNDING, in_bf16, is_schedule_free, offloads
from llmtune.arguments.stage import StageArguments
from llmtune.training.muon import MuonAndAdamW, matrices_of
from llmtune.training.offload import OffloadedAdamW
from llmtune.utils.accelerator import accelerator


def own_optimizer(model: Any, arguments: TrainingArguments, args: StageArguments) -> tuple[Any, dict[str, Any]] | None:
    """Return the class of the optimizer and its options, as Trainer takes them; None: those of transformers."""
    if offloads(args):
        return OffloadedAdamW, _of_adamw(arguments, model)
    if args.optim == "muon":
        return MuonAndAdamW, {"matrices": matrices_of(model), **_of_adamw(arguments, model)}
    if args.optim in ROUNDING:
        found, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        rounds = in_bf16(args)
        return seeded(found), options | {
            "bf16_stochastic_round": rounds,
            "rounding_seed": args.seed if rounds else None,
        }
    if is_schedule_free(args.optim):
        found, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        # upstream: transformers 5.23.0 transformers/trainer_optimizer.py: passes the fraction of the steps as a number
        return found, options | ({"warmup_steps": 0} if "warmup_steps" in options else {})  # the schedule warms up
    return None


def lora_plus(model: Any, arguments: TrainingArguments, args: StageArguments) -> torch.optim.Optimizer | None:
    """The optimizer of LoRA+, with a higher learning rate for B matrices (arXiv 2402.12354); None: not asked for."""
    if args.lorap_lr_ratio is None or args.sft_type != "lora":
        return None
    from peft.optimizers import create_loraplus_optimizer

    own = own_optimizer(model, arguments, args)
    optimizer_class, options = own or Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    options["loraplus_weight_decay"] = arguments.weight_decay
    return create_loraplus_optimizer(model, optimizer_class, loraplus_lr_ratio=args.lorap_lr_ratio, **options)


def _of_adamw(arguments: TrainingArguments, model: Any) -> dict[str, Any]:
    _, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return {name: options[name] for name in ("lr", "betas", "eps")} | {"weight_decay": arguments.weight_decay}


class SeededRounding:
    """Steps of torchao's optimizers whose random bits depend on the run's seed and the step alone.

    torchao draws them from torch's generator, which dropout and sampling move differently on each rank: replicas would
    drift apart. This way ranks round alike, and so does a resumed run, without a state of its own.

    On a CPU the step runs eagerly: compiling it takes longer than most runs there, and needs a C++ compiler.
    """

    def __init__(self, *args: Any, rounding_seed: int | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seed = rounding_seed

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        state: Any = getattr(self, "state", {})
        done = next((int(one["step"]) for one in state.values() if "step" in one), 0)
        with contextlib.ExitStack() as stack:
            if not accelerator().is_gpu:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if self._seed is not None:
                stack.enter_context(_seeded_by(self._seed, done))
            return super().step(closure)  # type: ignore[misc]


def seeded(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return the class of the optimizer with `SeededRounding`."""
    return type(optimizer.__name__, (SeededRounding, optimizer), {})


@contextlib.contextmanager
def _seeded_by(seed: int, step: int) -> Any:
    found = accelerator()
    kind = {"device_type": found.kind} if found.is_gpu else {}
    with torch.random.fork_rng(range(found.count) if kind else [], **kind):
        torch.manual_seed(random.Random(f"{seed}-{step}").getrandbits(32))  # a CPU's generator takes 32 bits
        yield
