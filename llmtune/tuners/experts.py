"""Mixtures of experts: the experts' weights are fused in 3-D parameters; routers are not adapted.

PEFT adapts such a parameter like a layer (`target_parameters`), with separate matrices per expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments


ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Names of router modules."""


def expert_parameters(model: Any) -> list[str]:
    """Name suffixes of fused weights, [experts, out, in] or [experts, in, out]: `mlp.experts.down_proj`."""
    names = [name for name, value in model.named_parameters() if value.ndim == 3 and ".experts." in name]
    return list(dict.fromkeys(".".join(name.rsplit(".", 3)[1:]) for name in names))


def target_parameters(model: Any, args: StageArguments) -> list[str]:
    """Fused weights that LoRA adapts: all with ALL, else those whose last name is among the targets."""
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
        log.warning("LoRA: experts are not adapted, since their fused weights do not support %s.", ", ".join(hindered))
        return []
    if found and args.quantization_bit:
        log.warning("--quantization_bit %d does not quantise the experts' fused weights.", args.quantization_bit)
    names = ", ".join(name.rpartition(".")[2] for name in found)
    log.info(f"LoRA on experts: {names or 'none'}, with separate matrices per expert; routers are not adapted.")
    return found


def settle_routers(model: Any, args: StageArguments) -> str:
    """Turn off the routers' auxiliary loss of transformers, which ours does not add.

    Returns:
        A note on the routers in full fine-tuning; "" if there are none.
    """
    if not expert_parameters(model):
        return ""
    config = model.config.get_text_config()
    asked = getattr(config, "output_router_logits", False)
    config.output_router_logits = False
    if args.sft_type != "full":
        return ""
    text = "No load-balancing loss is added for MoE routers"
    if asked:
        get_logger().warning("%s, though the checkpoint's config.json asks for one.", text)
    return "no load-balancing loss is added (--freeze_parameters 'mlp\\.gate\\.' freezes them)"
