"""Layers that adapters train, and parameters that full fine-tuning does not, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from llmtune.arguments.checks import is_name_pattern
from llmtune.errors import UsageError
from llmtune.models.heads import output_head
from llmtune.models.ports import native_target_modules, read_config
from llmtune.models.quantization import is_linear
from llmtune.utils.logging import get_logger

if TYPE_CHECKING:
    from llmtune.arguments.stage import StageArguments
    from llmtune.models.info import ModelInfo


def target_modules(
    model: Any, wanted: list[str], info: ModelInfo, frozen: frozenset[ModelPart] = frozenset({"vit", "aligner"})
) -> list[str]:
    """Names of the layers to adapt. ALL: every linear layer but the head; DEFAULT or nothing: the entry's.

    Vision models get full names, since their parts share the last ones (`q_proj`); PEFT shortens them.

    Args:
        frozen: Parts of such a model that are left alone whatever the names say.

    Raises:
        UsageError: A name that no linear layer has, or a regular expression that matches none.
    """
    patterns = [name for name in wanted if is_name_pattern(name)]
    if patterns:
        return _matched(model, patterns, [name for name in wanted if name not in patterns])
    if is_vision_model(model):
        names = None if wanted == ["ALL"] else _last_names(model, wanted, info)
        return list(trained_linears(model, names, frozen))
    return _last_names(model, wanted, info)


def _matched(model: Any, patterns: list[str], others: list[str]) -> list[str]:
    """Full names of the linear layers that a pattern matches entirely, and of those that end in a name."""
    linear = [name for name, module in model.named_modules() if is_linear(module)]
    found: dict[str, None] = {}
    for pattern in patterns:
        try:
            matched = [name for name in linear if re.fullmatch(pattern, name)]
        except re.error as err:
            raise UsageError(f"--lora_target_modules {pattern!r} is not a valid regular expression: {err}.") from err
        if not matched:
            raise UsageError(
                f"--lora_target_modules {pattern!r} matches no linear layer by its full name. An example: {linear[0]}."
            )
        found |= dict.fromkeys(matched)
    if missing := _missing(model, others):
        raise UsageError(_no_such_layer(model, "--lora_target_modules", missing))
    found |= dict.fromkeys(name for name in linear for one in others if ends_in(name, one))
    return list(found)


def check_modules_to_save(model: Any, names: list[str]) -> None:
    """Refuse missing layers, which PEFT ignores.

    Raises:
        UsageError: No module of the model has the name.
    """
    if missing := _missing(model, names):
        raise UsageError(_no_such_layer(model, "--modules_to_save", missing))


def _no_such_layer(model: Any, flag: str, missing: list[str]) -> str:
    given = f"{flag} {' '.join(missing)}"
    if flag == "--modules_to_save":
        holding = [name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)]
        return f"{given}: the model has no such layer. Its layers are {', '.join(_last_parts(holding))}."
    names = dict.fromkeys([*linear_names(model), *_last_parts(expert_parameters(model))])
    return f"{given}: the model has no such layer. Its linear layers are {', '.join(names)}; ALL adapts all of them."


def _last_parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _last_names(model: Any, wanted: list[str], info: ModelInfo) -> list[str]:
    names = linear_names(model)
    if wanted == ["ALL"]:
        return names
    if wanted in ([], ["DEFAULT"]):
        wanted = list(info.lora_target_modules)
        if not wanted:
            get_logger().info(f"LoRA: the model entry names no layers; adapting all linear ones: {', '.join(names)}.")
            return names
    fused = _last_parts(expert_parameters(model))
    wanted = [name for name in wanted if name not in fused or not _missing(model, [name])]
    missing = _missing(model, wanted)
    if missing:  # a checkpoint of 2023 on a native class: its fused layers have other names there
        native = list(native_target_modules(read_config(model.name_or_path), wanted))
        if not _missing(model, native):
            get_logger().info(f"LoRA: {', '.join(wanted)} of the original checkpoint are {', '.join(native)} here.")
            return native
    if missing:
        raise UsageError(_no_such_layer(model, "--lora_target_modules", missing))
    return wanted


def _missing(model: Any, names: list[str]) -> list[str]:
    modules = [name for name, _ in model.named_modules()]
    return [name for name in names if not any(ends_in(module, name) for module in modules)]


def ends_in(full: str, name: str) -> bool:
    """Whether a name as users give it is the end of a module's full name."""
    return f".{full}".endswith(f".{name}")


def linear_names(model: Any) -> list[str]:
    """Last parts of the names of all linear layers but the head, in the model's order."""
    head = output_head(model)
    routers = ROUTERS if expert_parameters(model) else frozenset()
    found = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    return [name for name in _last_parts(found) if name not in routers]


# The parts of a vision model: language model, vision tower and projector


ModelPart = Literal["language", "vit", "aligner"]

# Names of modules in transformers' classes. The projector may be inside the tower, as in Qwen.
ALIGNER = frozenset({"merger", "deepstack_merger_list", "multi_modal_projector"})
VIT = frozenset({"visual", "vision_tower", "vision_model"})


def part_of(name: str) -> ModelPart:
    """Return the part of a module or parameter, by its full name."""
    names = set(name.split("."))
    return "aligner" if names & ALIGNER else "vit" if names & VIT else "language"


def is_vision_model(model: Any) -> bool:
    return any(part_of(name) != "language" for name, _ in model.named_modules())


def frozen_parts(args: StageArguments) -> frozenset[ModelPart]:
    """Return the parts that `--freeze_vit` and `--freeze_aligner` freeze."""
    flags: tuple[tuple[ModelPart, bool], ...] = (("vit", args.freeze_vit), ("aligner", args.freeze_aligner))
    return frozenset(part for part, frozen in flags if frozen)


def freeze_parts(model: Any, frozen: frozenset[ModelPart]) -> None:
    for name, parameter in model.named_parameters():
        if part_of(name) in frozen:
            parameter.requires_grad_(False)


def trained_linears(model: Any, wanted: list[str] | None, frozen: frozenset[ModelPart]) -> Iterator[str]:
    """Return the full names of the linear layers that LoRA adapts: of parts that are not frozen, without the head.

    `wanted`: endings of the names of layers in the language model; None takes all. Those of the other parts are all
    taken: they have names of their own.
    """
    head = output_head(model)
    for name, module in model.named_modules():
        if not is_linear(module) or module is head or part_of(name) in frozen:
            continue
        if part_of(name) != "language" or wanted is None or any(ends_in(name, one) for one in wanted):
            yield name


# Partial full fine-tuning: the first layers, or parameters by name, are frozen


LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def freeze_by_name(model: Any, args: StageArguments) -> None:
    """Freeze the parameters of `--freeze_layers` and `--freeze_parameters`.

    Raises:
        UsageError: There are fewer layers, a pattern fits no name, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = {name: int(found[1]) for name in names if part_of(name) == "language" and (found := LAYER.search(name))}
    num_layers = max(layers.values(), default=-1) + 1
    if args.freeze_layers > num_layers:
        raise UsageError(f"--freeze_layers {args.freeze_layers}: the model has {num_layers} layers.")
    patterns = [re.compile(text) for text in args.freeze_parameters]
    for pattern in patterns:
        if not any(pattern.search(name) for name in names):
            raise UsageError(f"--freeze_parameters {pattern.pattern}: matches no parameter. An example: {names[0]}.")
    for name, parameter in model.named_parameters():
        deep = name not in layers or layers[name] >= args.freeze_layers
        if not deep or any(pattern.search(name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("Nothing is left to train: freeze less with --freeze_layers and --freeze_parameters.")


# Mixtures of experts: the experts' weights are fused in 3-D parameters, which PEFT adapts like layers, with separate
# matrices per expert (`target_parameters`); routers are not adapted


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
