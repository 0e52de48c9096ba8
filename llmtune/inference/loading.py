"""Adapters that a running engine loads, replaces and unloads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from llmtune.checkpoint import ADAPTER_FILE, adapter_kind
from llmtune.errors import CheckpointError
from llmtune.inference.engine import Engine, peft_name
from llmtune.tuners.lora import load_adapter
from llmtune.tuners.vocabulary import has_own_tokens

_versions = itertools.count(1)


def put_adapter(engine: Engine, name: str, folder: Path, *, wait_s: float) -> None:
    """Load a LoRA adapter under a name; one that has the name is replaced once the new one is whole.

    Nothing of the folder is run: weights are read from safetensors alone, and the template is that of the engine.

    Args:
        wait_s: Seconds to wait for running generations; no pass may see half an adapter.

    Raises:
        CheckpointError: It is no LoRA adapter of this model. TimeoutError: Generations ran for too long.
    """
    _check(folder)
    with _alone(engine, wait_s):
        version = f"{peft_name(name)}__{next(_versions)}"
        is_first = not isinstance(engine.model, PeftModel)
        try:
            engine.model = load_adapter(engine.model, folder, name=version).eval()
        except CheckpointError:
            if is_first:
                _take_off(engine.model)
            elif version in engine.model.peft_config:
                engine.model.delete_adapter(version)
            raise
        old = engine.adapters.put(name, version, engine.model)
        if old is not None:
            engine.model.delete_adapter(old)


def drop_adapter(engine: Engine, name: str, *, wait_s: float) -> None:
    """Unload an adapter that `put_adapter` has loaded.

    Raises:
        TimeoutError: Generations ran for too long.
    """
    with _alone(engine, wait_s):
        tuned = engine.model
        if len(tuned.peft_config) == 1:  # PEFT cannot do without any
            engine.model = tuned.get_base_model()
            engine.adapters.drop(name, engine.model)
            _take_off(engine.model)
        else:
            tuned.delete_adapter(engine.adapters.drop(name, tuned))


@contextmanager
def _alone(engine: Engine, wait_s: float) -> Iterator[None]:
    if not engine.busy.acquire(timeout=wait_s):
        raise TimeoutError
    try:
        yield
    finally:
        engine.busy.release()


def _check(folder: Path) -> None:
    if adapter_kind(folder) != "lora":
        raise CheckpointError(f"{folder} is not a LoRA adapter.")
    if not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_FILE}.")
    if has_own_tokens(folder):
        raise CheckpointError(f"{folder} has added tokens, so it cannot share a base model.")


def _take_off(model: Any) -> None:
    """Put each adapted layer of a model back, also where PEFT has failed at the next one."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
