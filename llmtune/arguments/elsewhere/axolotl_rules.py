"""Keys of Axolotl's YAML (0.19) that are more than another name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmtune.arguments.elsewhere.axolotl_keys import CUSTOM_OPTIMIZERS, HARMLESS, LACKS, RENAMED
from llmtune.arguments.elsewhere.translation import Rule, Translation, as_list, is_off, is_on, text_of


def _adapter(found: Translation, key: str, value: Any) -> None:
    name = text_of(value)
    if name not in ("lora", "qlora"):
        found.refuse(key, "llmtune has lora, adalora, ia3 and vera: --sft_type.", "sft_type")
        return
    found.set("sft_type", "lora", theirs=key)
    if name == "qlora" and not found.has("quantization_bit"):
        found.set("quantization_bit", 4, theirs=key)


def _bits(bits: int) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if is_on(value):
            found.set("quantization_bit", bits, theirs=key)

    return rule


def _all_linear(found: Translation, key: str, value: Any) -> None:
    if is_on(value):
        found.set("lora_target_modules", "ALL", theirs=key)


def _target_modules(found: Translation, key: str, value: Any) -> None:
    if not is_off(found.content.get("lora_target_linear")):
        found.without_effect(key, "lora_target_linear adapts every linear layer")
    else:
        found.set("lora_target_modules", *as_list(value), theirs=key)


def _template_kwargs(found: Translation, key: str, value: Any) -> None:
    found.set("chat_template_kwargs", json.dumps(_plain(value), ensure_ascii=False), theirs=key)


def _plain(value: Any) -> Any:
    """Words of YAML as JSON has them: `true` is no text there."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _min_lr(found: Translation, key: str, value: Any) -> None:
    found.set("lr_scheduler_type", "cosine_with_min_lr", theirs=key)
    found.set("train_args", f"lr_scheduler_kwargs={{min_lr_rate: {text_of(value)}}}", theirs=key)


def _precision(dtype: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if text_of(value).lower() == "auto":
            found.without_effect(key, "the default: bf16 on a GPU that supports it")
        elif is_on(value):
            found.set("dtype", dtype, theirs=key)

    return rule


def _tf32(found: Translation, key: str, value: Any) -> None:
    if text_of(value).lower() != "auto" and is_on(value):
        found.set("train_args", "tf32=true", theirs=key)


def _attention(name: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if is_on(value):
            found.set("attn_impl", name, theirs=key)

    return rule


def _attn_implementation(found: Translation, key: str, value: Any) -> None:
    names = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
    if text_of(value) in names:
        found.set("attn_impl", value, theirs=key)
    else:
        found.without_effect(key, "the fastest attention available is used")


def _checkpointing(found: Translation, key: str, value: Any) -> None:
    if text_of(value).startswith("offload"):
        found.set("gradient_checkpointing", "full", theirs=key, note="nothing is offloaded")
    else:
        found.set("gradient_checkpointing", "full" if is_on(value) else "none", theirs=key)


def _per_epoch(flag: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        count = float(text_of(value))
        note = f"once, not {count:g} times" if count > 1 else ""
        found.set(f"{flag}_strategy", "epoch" if count else "no", theirs=key, note=note)

    return rule


def _steps(flag: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if float(text_of(value)) < 1:
            found.refuse(key, f"a fraction of the run. Give --{flag}_steps N.", f"{flag}_steps", f"{flag}_strategy")
            return
        found.set(f"{flag}_steps", value, theirs=key)
        found.set(f"{flag}_strategy", "steps", theirs=key)

    return rule


def _strategy(flag: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        name = text_of(value).lower()
        name = "no" if is_off(name) else name
        if name in ("no", "epoch", "steps"):
            found.set(f"{flag}_strategy", name, theirs=key)
        else:
            found.without_effect(key, "the best checkpoint is kept in any case")

    return rule


def _optimizer(found: Translation, key: str, value: Any) -> None:
    name = text_of(value)
    if name in CUSTOM_OPTIMIZERS:
        found.refuse(key, "llmtune takes the optimizers of transformers: --optim.", "optim")
    else:
        found.set("optim", name, theirs=key)


def _warmup_steps(found: Translation, key: str, value: Any) -> None:
    if 0 < float(text_of(value)) < 1:
        found.set("warmup_ratio", value, theirs=key)
    else:
        found.set("train_args", f"warmup_steps={text_of(value)}", theirs=key)


def _val_size(found: Translation, key: str, value: Any) -> None:
    if float(text_of(value)) < 1:
        found.set("dataset_test_ratio", value, theirs=key)
    else:
        found.refuse(key, "a number of rows. Give --dataset_test_ratio with a fraction.", "dataset_test_ratio")


def _on_inputs(found: Translation, key: str, value: Any) -> None:
    if is_on(value):
        found.set("loss_on", "everything", theirs=key)


def _excess(found: Translation, key: str, value: Any) -> None:
    names = {"drop": "delete", "truncate": "right"}
    if text_of(value) in names:
        found.set("truncation_strategy", names[text_of(value)], theirs=key)
    else:
        found.refuse(key, "llmtune cuts or drops longer rows: --truncation_strategy.", "truncation_strategy")


def _plugins(found: Translation, key: str, value: Any) -> None:
    for one in as_list(value):
        name = text_of(one).rpartition(".")[2]
        if name == "LigerPlugin":
            if any(not is_off(found.content.get(f"liger_{part}")) for part in LIGER_PARTS):
                found.set("use_liger", True, theirs=key)
        elif name == "CutCrossEntropyPlugin":
            found.without_effect(key, "the loss is computed in chunks in any case")
        elif name in ("KernelsPlugin", "SwanLabPlugin"):
            found.without_effect(key, "speed or logging only")
        else:
            found.refuse(key, f"llmtune has no {name}.")


LIGER_PARTS = ("rope", "rms_norm", "layer_norm", "glu_activation", "swiglu")


def _fsdp(found: Translation, key: str, value: Any) -> None:
    if is_off(value):
        return
    found.set("fsdp", True, theirs=key)
    if isinstance(value, dict) and any("offload_params" in name and not is_off(one) for name, one in value.items()):
        found.set("fsdp_offload", True, theirs=key)


def _deepspeed(found: Translation, key: str, value: Any) -> None:
    text = text_of(value)
    stage = re.search(r"zero_?([123])", Path(text).name)
    if Path(text).exists() or stage is None:
        found.set("deepspeed_config_path", text, theirs=key)
    elif stage[1] == "1":
        found.refuse(key, "llmtune ships zero2 and zero3: --deepspeed_config_path.", "deepspeed_config_path")
    else:
        name = f"zero{stage[1]}{'_offload' if 'offload' in text else ''}"
        found.set("deepspeed_config_path", name, theirs=key, note="llmtune's own file")


def _tracker(name: str) -> Any:
    def rule(found: Translation, key: str, value: Any) -> None:
        if not is_off(value):
            found.set("report_to", name, theirs=key, note=f"its settings: variables {name.upper()}_...")

    return rule


def _hub_model(found: Translation, key: str, value: Any) -> None:
    found.set("push_to_hub", True, theirs=key)
    found.set("hub_model_id", value, theirs=key)


def _compile(found: Translation, key: str, value: Any) -> None:
    if text_of(value).lower() != "auto" and is_on(value):
        found.set("torch_compile", True, theirs=key)


def _shuffled(found: Translation, key: str, value: Any) -> None:
    if is_off(value):
        found.refuse(key, "llmtune shuffles the rows of all datasets together.")


RULES: dict[str, Rule] = {
    **RENAMED,
    **HARMLESS,
    **LACKS,
    "adapter": _adapter,
    "load_in_4bit": _bits(4),
    "load_in_8bit": _bits(8),
    "lora_target_linear": _all_linear,
    "lora_target_modules": _target_modules,
    "cosine_min_lr_ratio": _min_lr,
    **dict.fromkeys(("bf16", "bfloat16"), _precision("bf16")),
    **dict.fromkeys(("fp16", "float16"), _precision("fp16")),
    "float32": _precision("fp32"),
    "tf32": _tf32,
    "flash_attention": _attention("flash_attention_2"),
    "sdp_attention": _attention("sdpa"),
    "eager_attention": _attention("eager"),
    "flex_attention": _attention("flex_attention"),
    "attn_implementation": _attn_implementation,
    "gradient_checkpointing": _checkpointing,
    "evals_per_epoch": _per_epoch("eval"),
    "saves_per_epoch": _per_epoch("save"),
    "eval_steps": _steps("eval"),
    "save_steps": _steps("save"),
    "eval_strategy": _strategy("eval"),
    "evaluation_strategy": _strategy("eval"),
    "save_strategy": _strategy("save"),
    "optimizer": _optimizer,
    "warmup_steps": _warmup_steps,
    "val_set_size": _val_size,
    "train_on_inputs": _on_inputs,
    "excess_length_strategy": _excess,
    "plugins": _plugins,
    **dict.fromkeys(("fsdp", "fsdp_config"), _fsdp),
    "deepspeed": _deepspeed,
    "chat_template_kwargs": _template_kwargs,
    **{f"use_{name}": _tracker(name) for name in ("wandb", "mlflow", "swanlab", "trackio", "tensorboard")},
    "wandb_project": _tracker("wandb"),
    "hub_model_id": _hub_model,
    "torch_compile": _compile,
    "shuffle_merged_datasets": _shuffled,
}
