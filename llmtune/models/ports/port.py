"""Ports: the configuration they take, and the mapping of its keys and tensors. No torch here.

A module is a path in a model without the last part, `transformer.h.0.attn.c_attn`; `{n}` stands for the number of a
layer. The rows of a linear layer are its outputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmtune.errors import ModelError

Config = dict[str, Any]

Slices = tuple[tuple[int, int], ...]
"""Blocks of rows, [start, stop), in the order in which they follow one another in the new layer."""

Modules = Mapping[str, str | Mapping[str, Slices]]
"""A module of the checkpoint -> its native name, or several names, each with the rows that it takes."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One family of checkpoints.

    Attributes:
        family: As users call it.
        model_class: `"module:attribute"` of the native class.
        recognises: Whether a config.json is of this family.
        config: The arguments of the native configuration class. Raises ModelError for what no native class does.
        modules: The table of modules, from the native arguments. None: the checkpoint is native already.
        leaves_out: Regular expressions of tensors that the native model has no use for.
        biased: Ends of native modules with a bias. GPTQ files have biases of zero in all others.
        normalised_head: Whether the rows of lm_head are to have length 1.
        warnings: What users have to know of this checkpoint.
    """

    family: str
    model_class: str
    recognises: Callable[[Config], bool]
    config: Callable[[Config], Config] = dict
    modules: Callable[[Config], Modules] | None = None
    leaves_out: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    normalised_head: Callable[[Config], bool] = lambda _: False
    warnings: Callable[[Config], list[str]] = lambda _: []


# What the families' files are written with


def is_of(config: Config, model_type: str, *architectures: str) -> bool:
    """Whether a configuration is of this type, and of one of these classes if it names any; case is ignored."""
    if str(config.get("model_type", "")).lower() != model_type:
        return False
    named = {str(name).lower() for name in config.get("architectures") or ()}
    return not named or bool(named & {name.lower() for name in architectures})


def carry(config: Config, *keys: str, **renamed: str) -> Config:
    """The named keys, those that are there; `new="old"` renames one. Token ids, tying and dtype always come along."""
    common = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "initializer_range", "use_cache")
    found = {key: config[key] for key in (*common, *keys) if config.get(key) is not None}
    found |= {new: config[old] for new, old in renamed.items() if config.get(old) is not None}
    dtype = config.get("dtype") or config.get("torch_dtype")
    return found | ({"dtype": dtype} if dtype else {})


def refuse_unless(config: Config, family: str, **expected: Any) -> None:
    """Raise ModelError where a key is there and has another value than the native class implies."""
    for key, value in expected.items():
        if config.get(key, value) not in (value, None):
            raise ModelError(
                f"This {family} checkpoint has {key}={config[key]!r}, which no class of transformers does. "
                "Its own code can, if you trust it: --trust_remote_code true."
            )


def consecutive(sizes: Mapping[str, int]) -> dict[str, Slices]:
    """Names in the order of their rows, with how many rows each has."""
    found: dict[str, Slices] = {}
    start = 0
    for name, size in sizes.items():
        found[name] = ((start, start + size),)
        start += size
    return found


LLAMA_MODULES: tuple[str, ...] = (
    "lm_head",
    "model.embed_tokens",
    "model.norm",
    "model.layers.{n}.input_layernorm",
    "model.layers.{n}.post_attention_layernorm",
    *(f"model.layers.{{n}}.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.layers.{{n}}.mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def llama_modules(_: Config) -> Modules:
    """The table of a checkpoint whose names are Llama's already."""
    return {name: name for name in LLAMA_MODULES}


def native_modules(modules: Modules, module: str) -> Iterator[tuple[str, Slices | None]]:
    """Yield the native names of one module, each with the rows that it takes; None: all of them."""
    layer = re.search(r"\.(\d+)\.", module)
    number = layer.group(1) if layer else ""
    found = modules.get(module if layer is None else module[: layer.start()] + ".{n}." + module[layer.end() :])
    if isinstance(found, str):
        yield found.replace("{n}", number), None
    elif found is not None:
        for name, rows in found.items():
            yield name.replace("{n}", number), rows


def without_prefix(modules: Modules, name: str) -> list[str]:
    """The native names, relative to their layer, of a module that is named relative to its layer."""
    found = next((native for source, native in modules.items() if source.endswith("{n}." + name)), name)
    names = [found] if isinstance(found, str) else list(found)
    return [native.rpartition("{n}.")[2] for native in names]
