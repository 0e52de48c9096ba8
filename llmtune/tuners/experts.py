"""Mixtures of experts: the experts' weights lie fused in 3-D parameters, and routers are left alone.

PEFT adapts such a parameter as it does a layer (`target_parameters`), each expert with matrices of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments

__all__ = ["ROUTERS", "expert_parameters", "settle_routers", "target_parameters"]

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Last names of what chooses among experts, in models that have some."""


def expert_parameters(model: Any) -> list[str]:
    """Ends of the names of fused weights, [experts, out, in] or [experts, in, out]: `mlp.experts.down_proj`."""
    names = [name for name, value in model.named_parameters() if value.ndim == 3 and ".experts." in name]
    return list(dict.fromkeys(".".join(name.rsplit(".", 3)[1:]) for name in names))


def target_parameters(model: Any, args: StageArguments) -> list[str]:
    """The fused weights that LoRA adapts: all with ALL, else those whose last name is among the targets."""
    wanted = args.lora_target_modules
    experts = expert_parameters(model)
    found = [name for name in experts if wanted == ["ALL"] or name.rpartition(".")[2] in wanted]
    if not experts:
        return []
    reasons = {
        f"--lora_dropout_p {args.lora_dropout_p}": args.lora_dropout_p > 0,
        "--use_dora true": args.use_dora,
        f"--lora_init {args.lora_init}": args.lora_init != "default",
    }
    log = get_logger()
    if hindered := [flag for flag, given in reasons.items() if given and found]:
        log.warning("LoRA: the experts are left alone, since their fused weights cannot have %s.", ", ".join(hindered))
        return []
    if found and args.quantization_bit:
        log.warning("--quantization_bit %d leaves the experts' fused weights whole.", args.quantization_bit)
    names = ", ".join(name.rpartition(".")[2] for name in found)
    log.info(
        f"LoRA: of the experts, {names or 'nothing'} {'are' if ',' in names else 'is'} adapted, each expert by itself; "
        "routers are left alone."
    )
    return found


def settle_routers(model: Any, args: StageArguments) -> str:
    """Keep transformers from computing the routers' own loss, which ours does not add.

    Returns:
        What becomes of the routers when all the weights are trained; "" where there are none.
    """
    if not expert_parameters(model):
        return ""
    config = model.config.get_text_config()
    asked = getattr(config, "output_router_logits", False)
    config.output_router_logits = False
    if args.sft_type != "full":
        return ""
    text = "Routers are trained by the loss of the answers alone: no load-balancing loss is added"
    if asked:
        get_logger().warning("%s, though the checkpoint's config.json asks for one.", text)
    return f"{text} (--freeze_parameters 'mlp\\.gate\\.' leaves them as they are)."
