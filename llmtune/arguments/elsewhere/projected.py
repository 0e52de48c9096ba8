"""LLaMA-Factory's keys of GaLore and APOLLO, which are optimizers and their settings here."""

from __future__ import annotations

from typing import Any

from llmtune.arguments.elsewhere.translation import Lacks, Rule, Translation, is_on, text_of

SETTINGS = {
    "galore": {"rank": "16", "update_interval": "200", "scale": "2.0", "proj_type": "std"},
    "apollo": {
        "rank": "16", "update_interval": "200", "scale": "32.0", "proj": "random", "proj_type": "std",
        "scale_type": "channel",
    },
}  # fmt: skip
"""Of each optimizer: settings, with LLaMA-Factory's defaults (0.9.5), which differ from those of transformers."""
NAMES = {"update_interval": "update_proj_gap"}
"""Settings that transformers' `optim_args` name otherwise."""


def _projected(name: str) -> Rule:
    """The rule of `use_galore` or `use_apollo`, which reads the other keys of its optimizer."""

    def rule(found: Translation, key: str, value: Any) -> None:
        if not is_on(value):
            return
        settings = {
            NAMES.get(part, part): text_of(found.content.get(f"{name}_{part}", default))
            for part, default in SETTINGS[name].items()
        }
        if text_of(found.content.get(f"{name}_target", "all")) != "all":
            found.refuse(f"{name}_target", "give the layers: --train_args optim_target_modules=NAME.", "train_args")
        layerwise = "_layerwise" if is_on(found.content.get(f"{name}_layerwise")) else ""
        found.set("optim", f"{name}_adamw{layerwise}", theirs=key)
        text = ",".join(f"{part}={setting}" for part, setting in settings.items())
        found.set("train_args", f"optim_args={text}", theirs=f"{name}_rank")

    return rule


def _setting(name: str) -> Rule:
    """The rule of a key that `use_galore` or `use_apollo` reads."""

    def rule(found: Translation, key: str, value: Any) -> None:
        if not is_on(found.content.get(f"use_{name}")):
            found.without_effect(key, f"use_{name} is off")

    return rule


RULES: dict[str, Rule] = {
    **{f"use_{name}": _projected(name) for name in SETTINGS},
    **{
        f"{name}_{part}": _setting(name) for name, parts in SETTINGS.items() for part in ("target", "layerwise", *parts)
    },
    "apollo_scale_front": Lacks("APOLLO's scaling before its limiter", with_key="use_apollo"),
}
