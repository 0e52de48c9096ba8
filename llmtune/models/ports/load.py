"""Find the port of a configuration, and load a folder through it.

Weights are renamed and split on the way; everything else is transformers'. No torch at import.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.errors import ModelError
from llmtune.models.ports.chatglm import PORT as CHATGLM
from llmtune.models.ports.llama import PORTS as LLAMA
from llmtune.models.ports.port import Config, Port, without_prefix
from llmtune.models.ports.qwen_v1 import PORT as QWEN
from llmtune.registry import resolve_reference
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger, log_once

if TYPE_CHECKING:
    import torch


PORTS = (QWEN, *LLAMA, CHATGLM)

# What has a default in the native class that need not be that of the family.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def find_port(config: Config) -> Port | None:
    """The port of a config.json, given as read. None: transformers loads the folder by itself, or not at all."""
    return next((port for port in PORTS if port.recognises(config)), None)


def native_target_modules(config: Config, names: Iterable[str]) -> tuple[str, ...]:
    """The last parts of native modules that hold what modules of an original checkpoint, named likewise, held.

    `c_attn` of Qwen gives q_proj, k_proj and v_proj, `attn.c_proj` gives o_proj. Other names, and all where there is
    no port, stay.
    """
    port = find_port(config)
    if port is None or port.modules is None:
        return tuple(names)
    modules = port.modules(port.config(config))
    found: dict[str, None] = {}  # a set that keeps the order
    for name in names:
        natives = [native for source, native in modules.items() if f".{source}".endswith(f".{name}")] or [name]
        for native in natives:
            found |= dict.fromkeys(
                path.rpartition(".")[2] for path in ([native] if isinstance(native, str) else native)
            )
    return tuple(found)


def read_config(folder: str | Path) -> Config:
    """The config.json of a folder, as written. Empty if there is none or it is not JSON: the loader says so."""
    return read_json(Path(folder) / "config.json")


def native_config(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration that the model of this folder gets, without reading weights.

    Returns:
        That of the native class where there is a port and remote code is not trusted; AutoConfig's otherwise.

    Raises:
        ModelError: The family is known, and this checkpoint of it has something that no native class does.
    """
    old = read_config(folder)
    port = None if trust_remote_code else find_port(old)
    if port is None:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return _make_config(port, _native_arguments(port, old), folder)


def causal_lm_loader(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the loader of this folder's model: an object with the `from_pretrained` of transformers' classes.

    Returns:
        AutoModelForCausalLM, or a `Ported` where config.json is of a family with a port and remote code is not trusted.
    """
    port = None if trust_remote_code else find_port(read_config(folder))
    if port is not None:
        return Ported(port)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


class Ported:
    """Loads checkpoints of one family onto its native class."""

    def __init__(self, port: Port) -> None:
        self.port = port

    def from_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        use_safetensors: bool = True,
        trust_remote_code: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Load a folder.

        Args:
            dtype: None: the one that config.json names.
            use_safetensors: False also reads `.bin` files, where there is no safetensors.
            trust_remote_code: Accepted for the sake of the signature; a port runs no code of the checkpoint.
            output_loading_info: Return transformers' report as well, for `llmtune.models.whole_weights`.
            options: For transformers' `from_pretrained`: device_map, quantization_config, attn_implementation ...

        Raises:
            ModelError: Files or tensors are missing, or do not belong to the family.
        """
        folder, port = Path(folder), self.port
        old, model_class = read_config(folder), _model_class(port)
        options["dtype"] = dtype or "auto"
        if port.modules is None:
            model, report = model_class.from_pretrained(
                folder, use_safetensors=use_safetensors, output_loading_info=True, **options
            )
        else:
            model, report = _convert(folder, port, old, model_class, not use_safetensors, options)
        get_logger().info(f"Loaded {port.family} onto {model_class.__name__}: no code of the checkpoint is run.")
        for warning in port.warnings(old):
            log_once(f"{folder.name}: {warning}")
        return (model, report) if output_loading_info else model


def _convert(
    folder: Path, port: Port, old: Config, model_class: Any, allow_pickle: bool, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from transformers import GenerationConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    from llmtune.models.ports.tensors import converted, open_checkpoint

    new = _native_arguments(port, old)
    with ExitStack() as stack:
        state: dict[str, Any] = dict(converted(open_checkpoint(folder, allow_pickle, stack), port, old, new))
        if is_deepspeed_zero3_enabled():  # its loader takes tensors only
            state = {name: tensor.read() for name, tensor in state.items()}
        model, report = model_class.from_pretrained(
            None,
            config=options.pop("config", None) or _make_config(port, new, folder),
            state_dict=state,
            output_loading_info=True,
            **options,
        )
    model.config.name_or_path = model.name_or_path = str(folder)  # peft writes it into its adapters
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report


def _native_arguments(port: Port, old: Config) -> Config:
    if port.modules is None:
        return dict(old)
    try:
        new = port.config(old)
    except KeyError as err:
        raise ModelError(f"The config.json of this {port.family} checkpoint lacks {err}.") from err
    for key in REQUIRED:
        if key not in new:
            raise ModelError(f"The config.json of this {port.family} checkpoint does not say its {key}.")
    quantised = old.get("quantization_config")
    if not quantised:
        return new
    if quantised.get("quant_method") != "gptq" or 32 % int(quantised.get("bits", 4)):
        raise ModelError(
            f"This {port.family} checkpoint was saved quantised in a form of its own, which cannot be carried over. "
            "Take the one that is not quantised (its name has no -4bits, -int4 or the like) "
            "and give --quantization_bit 4."
        )
    return new | {"quantization_config": _renamed(quantised, port, new)}


def _renamed(quantised: Config, port: Port, new: Config) -> Config:
    """A GPTQ configuration with native names: modules_in_block_to_quantize lists names, or lists of them."""
    assert port.modules is not None
    modules = port.modules(new)

    def rename(names: list[Any]) -> list[Any]:
        found: list[Any] = []
        for name in names:
            found += [rename(name)] if isinstance(name, list) else without_prefix(modules, name)
        return found

    renamed = dict(quantised)
    if quantised.get("modules_in_block_to_quantize"):
        renamed["modules_in_block_to_quantize"] = rename(quantised["modules_in_block_to_quantize"])
    if quantised.get("block_name_to_quantize"):
        renamed["block_name_to_quantize"] = "model.layers"
    return renamed


def _make_config(port: Port, new: Config, folder: str | Path) -> Any:
    found = _model_class(port).config_class.from_dict(new)
    found.name_or_path = str(folder)
    return found


def _model_class(port: Port) -> Any:
    return resolve_reference(port.model_class, what=f"The class of {port.family}")
