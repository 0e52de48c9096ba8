"""The critic and the KL control of a PPO run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmtune.arguments.online import PpoArguments
from llmtune.checkpoint import checkpoint_kind, checkpoint_of
from llmtune.models.dtypes import resolve_dtype
from llmtune.models.loading import get_model_tokenizer
from llmtune.models.score import score_options
from llmtune.rewards.specs import parse_rewards
from llmtune.training.critic import VALUE, Critic, CriticSettings, model_head
from llmtune.training.kl_control import KlControl
from llmtune.training.stage import Stage
from llmtune.tuners.score_adapter import add_score_adapter


def build_critic(stage: Stage, model: Any) -> Critic:
    """Build the critic: with adapters, one more on the same base; else a model of its own."""
    args: Any = stage.args
    dtype = resolve_dtype(stage.samples.info, args.dtype)[0]
    settings = CriticSettings(
        args.critic_learning_rate,
        args.value_clip,
        args.max_grad_norm,
        None if dtype is torch.float32 else dtype,
    )
    start, why = critic_start(args)
    if args.sft_type != "full":
        shared = start is not None and checkpoint_kind(start) == "lora"
        head = add_score_adapter(model, VALUE, start if shared else None)
        whence = f"begins as {start}" if shared else "begins with values of 0"
        stage.decisions.choose("Critic", f"an adapter of the same base, {whence}", why if shared else "")
        return Critic(model, head, settings, is_adapter=True)
    own = _own_model(args, start)
    stage.decisions.choose("Critic", f"a model of its own, begins as {start or args.display_name()}", why)
    return Critic(own.to(model.device), model_head(own), settings, is_adapter=False)


def critic_start(args: Any) -> tuple[Path | None, str]:
    """Return the checkpoint that the critic begins as, and why; None: the model itself."""
    if args.critic_path is not None:
        return checkpoint_of(Path(args.critic_path).expanduser()), ""
    models = [spec for spec in parse_rewards(args.rewards) if spec.kind == "model"]
    if not models:
        return None, ""
    return checkpoint_of(Path(models[0].target).expanduser()), "the reward model knows what is good"


def _own_model(args: Any, start: Path | None) -> Any:
    """Load a model with a score, in fp32: that of a folder with full weights, else the trained one with a new head."""
    full = start is not None and checkpoint_kind(start) == "full"
    place = str(start) if full else args.model_id_or_path
    options = score_options(start if full and start is not None else args.folder()) | (
        {"new_tensors": ()} if full else {}
    )
    model, _ = get_model_tokenizer(
        args.model_type,
        model_id_or_path=place,
        torch_dtype=torch.float32,
        load_tokenizer=False,
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        **options,
        **args.hub_options(),
    )
    if not full:
        torch.nn.init.zeros_(model.score.weight)
    return model.requires_grad_(False)


def kl_control(args: PpoArguments) -> KlControl | None:
    """Return the control of beta; None where it stays."""
    if not args.adaptive_kl or not args.needs_reference:
        return None
    return KlControl(args.options_of(args.loss_key)["beta"], args.kl_target, args.kl_horizon)
