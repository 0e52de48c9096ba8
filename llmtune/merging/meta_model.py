"""Meta-device models whose parts are loaded from files only while in use: for adapters, merging and forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmtune.arguments.groups import rope_options
from llmtune.arguments.infer import InferArguments
from llmtune.checkpoint import adapter_folder
from llmtune.errors import CheckpointError, one_line
from llmtune.merging.weights import Unstreamable
from llmtune.models.loading import from_config
from llmtune.models.ports import native_config
from llmtune.models.rope import scale_rope
from llmtune.tuners.lora import check_adapter
from llmtune.tuners.vocabulary import grow_for_adapter, grow_vocabulary

Places = dict[str, tuple[nn.Module, str]]
"""Place of a parameter: the module, and its name there."""

Place = tuple[str, tuple[nn.Module, str]]
Read = Callable[[str], Tensor]
MOVE = "_move_adapter_to_device_of_base_layer"


def build_meta_model(
    args: InferArguments, folder: Path, *, num_rows: int = 0, adapter: Path | None = None, scores: bool = False
) -> Any:
    """Return the model of a folder in fp32, on the meta device except for its buffers.

    Args:
        num_rows: Size that its vocabulary is resized to. adapter: It is resized as this one needs.
        scores: Build the class of a reward model.
    """
    from accelerate import init_empty_weights

    config = native_config(folder, trust_remote_code=args.trust_remote_code)
    rope = rope_options(args).get("rope")
    if rope is not None:
        scale_rope(config, *rope)
    with init_empty_weights(include_buffers=False):
        model = from_config(config, folder, torch.float32, args.trust_remote_code, scores=scores)
        model.config.name_or_path = model.name_or_path = str(folder)
        if adapter is not None:
            grow_for_adapter(model, adapter)
        if num_rows:
            grow_vocabulary(model, num_rows)
    model.tie_weights()
    return model.eval()


def places_of(model: nn.Module) -> Places:
    """Return parameters and persistent buffers by name, independent of wrappers added to the modules later."""
    modules = dict(model.named_modules())
    names = model.state_dict(keep_vars=True)
    return {name: (modules[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in names}


def attach_adapters(model: Any, folder: Path) -> Any:
    """Attach the trained adapters to the meta-device layers, in fp32.

    Raises:
        CheckpointError: They do not fit. Unstreamable: Their kind is initialised from the base model's weights.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    folder = adapter_folder(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        tuned = get_peft_model(model, config, low_cpu_mem_usage=True)
        layers = [module for module in tuned.modules() if hasattr(module, MOVE)]
        for layer in layers:
            # upstream: peft 0.21.2 peft/tuners/tuners_utils.py: moves loaded adapters to the base's device, meta
            setattr(layer, MOVE, lambda *_, **__: None)
        report = set_peft_model_state_dict(tuned, load_peft_weights(str(folder), device="cpu"), low_cpu_mem_usage=True)
        for layer in layers:
            delattr(layer, MOVE)
    except RuntimeError as err:
        text = one_line(err)
        if "size mismatch" in text:
            raise CheckpointError(
                f"The adapter in {folder} does not fit the model: was it trained on another one, or with more tokens "
                f"(--resize_emb true)? ({text})"
            ) from err
        raise Unstreamable(f"its adapters cannot be attached to meta-device layers: {text}") from err
    except (ValueError, KeyError, NotImplementedError, TypeError, AttributeError) as err:
        raise Unstreamable(f"its adapters cannot be attached to meta-device layers: {err}") from err
    except Exception as err:  # safetensors' own error type derives from Exception
        raise CheckpointError(f"The adapter in {folder} cannot be read; a file may be truncated: {err}") from err
    check_adapter(tuned, folder, report=report)
    for parameter in tuned.parameters():
        if parameter.device.type != "meta" and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return tuned.eval()


def wrappers_of(tuned: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost of PEFT's layers, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[str, nn.Module] = {}
    for name, module in tuned.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found[name] = module
    return found


@contextmanager
def filled(places: Iterable[Place], read: Read) -> Iterator[None]:
    """Load the parameters of these places for the duration of the block."""
    with ExitStack() as stack:
        for name, (module, leaf) in places:
            stack.callback(_put, module, leaf, getattr(module, leaf))
            value = read(name)
            _put(module, leaf, nn.Parameter(value, requires_grad=False) if leaf in module._parameters else value)
        yield


def _put(module: nn.Module, leaf: str, value: Any) -> None:
    kept = module._parameters if leaf in module._parameters else module._buffers
    kept[leaf] = value


@contextmanager
def computing(model: nn.Module, places: Places, wrappers: Iterable[nn.Module], read: Read) -> Iterator[None]:
    """Let the model run forward passes; each part is loaded only while it computes.

    Args:
        wrappers: Layers that access the layer inside them; they are loaded as one.
    """
    with ExitStack() as stack:
        taken: set[int] = set()
        for wrapper in wrappers:
            inside = {id(module) for module in wrapper.modules()}
            own = [(name, place) for name, place in places.items() if id(place[0]) in inside]
            taken |= inside
            _fill_at_work(wrapper, own, read, stack)
        by_module: dict[int, list[Place]] = {}
        for name, place in places.items():
            if id(place[0]) not in taken:
                by_module.setdefault(id(place[0]), []).append((name, place))
        for own in by_module.values():
            _fill_at_work(own[0][1][0], own, read, stack)
        yield


def _fill_at_work(module: nn.Module, own: list[Place], read: Read, stack: ExitStack) -> None:
    own = [(name, place) for name, place in own if getattr(*place).device.type == "meta"]
    if not own:
        return
    at_work = ExitStack()

    def before(*_: Any) -> None:
        at_work.enter_context(filled(own, read))

    def after(*_: Any) -> None:
        at_work.close()

    stack.callback(at_work.close)
    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)
