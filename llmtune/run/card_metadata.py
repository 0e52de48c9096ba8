"""Front matter of a model card: what the hubs file a model under. What nobody has stated is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune.checkpoint import ADAPTER_CONFIG, adapter_kind, base_of, is_reward
from llmtune.errors import CheckpointError, LlmtuneError
from llmtune.hub.fetch import local_model
from llmtune.models.folder import is_hub_id
from llmtune.models.info import MODEL_MAPPING
from llmtune.utils.files import read_json

MODELSCOPE_TASKS = {"image-text-to-text": "visual-question-answering"}
"""ModelScope's names of tasks, where they are not Hugging Face's."""

OF_THE_BASE = ("license", "license_name", "license_link", "language")


def metadata(
    folder: Path, checkpoint: Path, settings: Mapping[str, Any], base: str, datasets: Sequence[str]
) -> dict[str, Any]:
    """Return the front matter of a folder's model card.

    Args:
        settings: The checkpoint's. base: The base model's hub id, or any other name, which is left out.
        datasets: Names of the data; those that are no hub ids are left out.
    """
    original = _base_folder(checkpoint, settings, base)
    task = _task(checkpoint, settings, original)
    is_gguf = any(folder.glob("*.gguf"))
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    head: dict[str, Any] = {}
    if not is_gguf:  # which no Python library of the hubs' lists reads
        head["library_name"] = "peft" if is_adapter else "transformers"
    head |= {"pipeline_tag": task, "tasks": [MODELSCOPE_TASKS.get(task, task)], "frameworks": ["Pytorch"]}
    if is_hub_id(base):
        head["base_model"] = base
        head["base_model_relation"] = _relation(folder, is_adapter=is_adapter, is_gguf=is_gguf)
    named = list(dict.fromkeys(name for name in datasets if is_hub_id(name)))
    if named:
        head["datasets"] = named
    head |= _stated(original)
    head["tags"] = list(dict.fromkeys(_tags(folder, task, is_gguf=is_gguf)))
    return head


def front_matter(head: Mapping[str, Any]) -> list[str]:
    """Return the lines of a model card's YAML, with those around it."""
    import yaml

    text = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=1000)
    return ["---", *text.splitlines(), "---"]


def _relation(folder: Path, *, is_adapter: bool, is_gguf: bool) -> str:
    """Return how a model came from its base. Merges, in the hub's sense, are of several models: none is made here."""
    if is_adapter:
        return "adapter"
    return "quantized" if is_gguf or _quantised(folder) else "finetune"


def _quantised(folder: Path) -> str:
    """Return the method by which a folder's weights are quantised; "" if they are not."""
    found = read_json(folder / "config.json").get("quantization_config") or read_json(folder / "quantization.json")
    return str(found.get("quant_method") or "") if isinstance(found, dict) else ""


def _task(checkpoint: Path, settings: Mapping[str, Any], original: Path | None) -> str:
    with contextlib.suppress(CheckpointError):  # a folder of another program's weights
        if is_reward(checkpoint):
            return "text-classification"
    for place in (checkpoint, original):
        config = read_json(place / "config.json") if place is not None else {}
        if config:
            return "image-text-to-text" if "vision_config" in config else "text-generation"
    key = settings.get("model_type")
    sees = key in MODEL_MAPPING and MODEL_MAPPING[str(key)].images == "native"
    return "image-text-to-text" if sees else "text-generation"


def _tags(folder: Path, task: str, *, is_gguf: bool) -> list[str]:
    tags = ["llmtune", "reward-model" if task == "text-classification" else task]
    with contextlib.suppress(CheckpointError):
        kind = adapter_kind(folder)
        tags += [kind] if kind != "full" else []
    if is_gguf:
        tags.append("gguf")
    elif _quantised(folder):
        tags.append(_quantised(folder))
    return tags


def _base_folder(checkpoint: Path, settings: Mapping[str, Any], base: str) -> Path | None:
    """Return the base model's folder, if it is on this machine. No hub is asked."""
    for place in (settings.get("model_id_or_path"), base_of(checkpoint)):
        if place and Path(str(place)).is_dir():
            return Path(str(place))
    if not is_hub_id(base):
        return None
    revision, cache = settings.get("model_revision"), settings.get("cache_dir")
    with contextlib.suppress(LlmtuneError, OSError, ValueError):
        return local_model(base, use_hf=settings.get("use_hf"), revision=revision, cache_dir=cache)
    return None


def _stated(original: Path | None) -> dict[str, Any]:
    """Return licence and languages as the base's own model card states them."""
    card = None if original is None else original / "README.md"
    if card is None or not card.is_file():
        return {}
    found = _read_front_matter(card.read_text(encoding="utf-8", errors="replace"))
    stated = {name: found[name] for name in OF_THE_BASE if found.get(name)}
    link = stated.get("license_link")
    if link is not None and not str(link).startswith(("https://", "http://")):
        del stated["license_link"]  # a file of the base's repository, which is not in this one
    return stated


def _read_front_matter(text: str) -> dict[str, Any]:
    import yaml

    parts = text.lstrip("\ufeff").split("\n---", 1)
    if len(parts) < 2 or not parts[0].startswith("---"):
        return {}
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.load(parts[0][3:], Loader=yaml.BaseLoader)  # texts only: the Norwegian "no" is no boolean
        return found if isinstance(found, dict) else {}
    return {}
