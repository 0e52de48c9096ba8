"""Identify the registry entry of a folder or hub id: by name, else by its files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtune.checkpoint import saved_settings
from llmtune.errors import ModelError, UsageError
from llmtune.hub.clients import HubOptions
from llmtune.models.folder import is_hub_id, model_folder
from llmtune.models.info import AUTO, MODEL_MAPPING, ModelInfo
from llmtune.models.ports.load import find_port
from llmtune.templates.info import TEMPLATE_MAPPING
from llmtune.utils.files import read_json

BASE_TEMPLATES = ("default-generation", "default-generation-bos")


@dataclass(frozen=True, slots=True)
class Identity:
    """`template`: if it is not the entry's. `reason`: how the entry was found, for the log."""

    model_type: str
    template: str | None
    reason: str


def identify(model_id_or_path: str, hub: HubOptions | None = None) -> Identity:
    """Return the entry of a model, `auto` if there is none.

    Only for hub ids that no entry names, configuration and tokenizer are downloaded.

    Raises:
        UsageError: Neither a folder nor anything that can be an id. ModelError: The folder has no config.json.
        HubError: The hub does not give it.
    """
    folder = Path(model_id_or_path).expanduser()
    if folder.is_dir() and (found := _by_run(folder)):
        return found
    if found := _by_name(model_id_or_path):
        return found
    if not folder.is_dir():
        if not is_hub_id(model_id_or_path):
            raise UsageError(
                f"There is no folder {model_id_or_path}, and no entry has that name. Give a folder, the id of a model "
                "on a hub (owner/name), or a key with --model_type (llmtune list models)."
            )
        folder = model_folder(MODEL_MAPPING[AUTO], model_id_or_path, hub=hub, weights=False)
    return _by_files(folder, model_id_or_path)


def _by_run(folder: Path) -> Identity | None:
    """Identify a checkpoint of llmtune by its saved settings."""
    saved = saved_settings(folder)
    if saved.get("model_type") in MODEL_MAPPING and saved.get("sft_type") == "full":
        return Identity(saved["model_type"], saved.get("template_type"), "the sft_args.json of the run that wrote it")
    return None


def _by_name(model_id_or_path: str) -> Identity | None:
    name = _published_name(model_id_or_path)
    for key, info in _entries():
        ids = [one for one in (info.model_id_or_path, info.hf_model_id) if one]
        if model_id_or_path in ids:
            return Identity(key, None, "its id")
        if name in [one.rsplit("/", 1)[-1].lower() for one in ids]:
            return Identity(key, None, f"its name, {name}")
    return None


def _published_name(place: str) -> str:
    """The name on the hub behind a path, the hubs' caches included.

    Their folders are `models--owner--name/snapshots/commit`, `owner--name/snapshots/revision`, and `owner/na___me`
    where a dot stood in older ModelScope clients.
    """
    parts = [part for part in Path(place).parts if part not in ("/", ".")]
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[:-2]
    last = parts[-1] if parts else ""
    return last.rsplit("--", 1)[-1].replace("___", ".").lower()


def _by_files(folder: Path, place: str) -> Identity:
    from llmtune.templates.matching import matching_template

    config = read_json(folder / "config.json")
    if not config:
        raise ModelError(f"{folder} has no config.json, so it is not a model folder.")
    architecture = str((config.get("architectures") or ["?"])[0])
    text = config.get("text_config", {})
    vocabulary = config.get("vocab_size") or config.get("padded_vocab_size") or text.get("vocab_size")
    candidates = [
        (key, info)
        for key, info in _entries()
        if info.architecture.lower() == architecture.lower() and info.vocab_size in (None, vocabulary)
    ]
    template, why = matching_template(folder, prefer=[info.template for _, info in candidates])
    template = template or _template_without_jinja(folder, [info.template for _, info in candidates])
    fitting = [(key, info) for key, info in candidates if info.template == template]
    what = f"config.json says {architecture} with {vocabulary} tokens; {why}"
    if not fitting:
        fitting = _with_these_image_tokens(folder, candidates)
        template = fitting[0][1].template if fitting else template
    if not fitting:
        chosen = template or _base_template(folder)
        return Identity(AUTO, chosen, f"{what}; no entry has both, so its own files decide (template {chosen})")
    port = find_port(config)
    native = config | config.get("text_config", {}) if port is None else port.config(config)
    key, _ = min(fitting, key=lambda item: _distance(item[0], native))
    return Identity(key, template, f"{what}; that is {key}, or nearest to it in size")


def _with_these_image_tokens(folder: Path, candidates: list[tuple[str, ModelInfo]]) -> list[tuple[str, ModelInfo]]:
    """Identify vision models by the image tokens in the folder's chat template."""
    from llmtune.templates.matching import chat_template_of

    source, _ = chat_template_of(folder)
    seeing = [(key, info) for key, info in candidates if info.images == "native"]
    return [(key, info) for key, info in seeing if TEMPLATE_MAPPING[info.template].image.strip() in (source or "")]


def _template_without_jinja(folder: Path, candidates: list[str]) -> str | None:
    """Checkpoints of 2023 say elsewhere whether they are chat models."""
    generation = read_json(folder / "generation_config.json")
    is_chat = generation.get("chat_format") == "chatml" or "user_token_id" in generation
    is_chat = is_chat or re.search(r"chat|instruct", folder.name.lower()) is not None
    chat = [name for name in candidates if name not in BASE_TEMPLATES]
    base = [name for name in candidates if name in BASE_TEMPLATES]
    chosen = chat if (is_chat or not base) else base
    return chosen[0] if chosen else None


def _base_template(folder: Path) -> str:
    tokenizer = read_json(folder / "tokenizer_config.json")
    adds_bos = tokenizer.get("add_bos_token", tokenizer.get("tokenizer_class", "").startswith("Llama"))
    return BASE_TEMPLATES[1] if adds_bos and tokenizer.get("bos_token") else BASE_TEMPLATES[0]


def _distance(key: str, config: dict[str, Any]) -> float:
    """How far the size in a key, `7b` say, is from that of a configuration."""
    size = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)(b|m)(?![a-z])", key)
    if size is None:
        return math.inf
    billions = float(size[1]) / (1 if size[2] == "b" else 1000)
    return abs(math.log(billions * 1e9 / max(_num_parameters(config), 1)))


def _num_parameters(config: dict[str, Any]) -> float:
    """Of a dense decoder with a gated feed-forward part: near enough to tell 7B from 14B."""
    hidden = config.get("hidden_size") or config.get("n_embd") or 0
    layers = config.get("num_hidden_layers") or config.get("n_layer") or 0
    feed_forward = config.get("intermediate_size") or 4 * hidden
    vocabulary = config.get("vocab_size") or 0
    return float(layers * (4 * hidden**2 + 3 * hidden * feed_forward) + 2 * vocabulary * hidden)


def _entries() -> list[tuple[str, ModelInfo]]:
    """All entries but `auto` and those of plug-ins: a broken one must not stop the search."""
    keys = [key for key in MODEL_MAPPING if not MODEL_MAPPING.origin(key).startswith("plugin ")]
    return [(key, MODEL_MAPPING[key]) for key in keys if key != AUTO]
