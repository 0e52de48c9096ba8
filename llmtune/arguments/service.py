"""The arguments of serve and web: a checkpoint with adapters, served at an address."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from llmtune.arguments.fields import Problems, above, at_least, between, limited
from llmtune.arguments.groups import SamplingArguments
from llmtune.arguments.infer import LoadArguments
from llmtune.errors import UsageError
from llmtune.utils.files import read_json
from llmtune.utils.logging import get_logger

API_KEY_VARIABLE = "LLMTUNE_API_KEY"
BASE_NAME = "base"


@dataclass(kw_only=True)
class ServiceArguments(LoadArguments):
    """Service."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address but loopback (127.0.0.1, ::1, localhost) needs an API key."""
    port: int = limited(8000, between(0, 65535))
    """Port to listen on; 0: a free one, shown in the start message."""
    api_key: str | None = None
    """Key that clients send as `Authorization: Bearer KEY`. Better: LLMTUNE_API_KEY in the environment, which other
    users of the machine cannot see in the process list."""
    served_model_name: str | None = None
    """Name of the model in requests. Default: its key, or the name of its folder."""
    adapters: list[str] = field(default_factory=list)
    """More LoRA checkpoints of the same base, as NAME=FOLDER; a request selects one by its `model`. If --ckpt_dir is an
    adapter itself, the base model is served as `base`."""

    adapter_args: dict[str, LoadArguments] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not (self.ckpt_dir or self.model_type or self.model_id_or_path):
            raise UsageError(
                "No model given. Use --ckpt_dir FOLDER, --model_type NAME (see `llmtune list models`) or "
                "--model_id_or_path FOLDER."
            )
        super().__post_init__()
        self.api_key = self.api_key or os.environ.get(API_KEY_VARIABLE) or None
        problems = Problems()
        self._check(problems)
        problems.raise_if_any()
        self.adapter_args = self._adapters()

    @property
    def main_name(self) -> str:
        return self.served_model_name or self.display_name()

    def _check(self, problems: Problems) -> None:
        problems.need(
            self.api_key is not None or is_loopback(self.host),
            f"--host {self.host} is reachable from other machines, so it needs an API key: set {API_KEY_VARIABLE} in "
            "the environment, or give --api_key. Without a key, only 127.0.0.1 is allowed.",
        )
        problems.need(
            self.api_key is None or (self.api_key.isascii() and not any(map(str.isspace, self.api_key))),
            "--api_key goes into an HTTP header: ASCII characters without spaces.",
        )

    def _adapters(self) -> dict[str, LoadArguments]:
        """Settings of each additional adapter, from its own checkpoint."""
        found: dict[str, LoadArguments] = {}
        for item in self.adapters:
            name, equals, folder = item.partition("=")
            if not name or not equals or not folder:
                raise UsageError(f"--adapters takes NAME=FOLDER, not {item!r}; the main checkpoint is --ckpt_dir.")
            if name in found or name in (self.main_name, BASE_NAME):
                raise UsageError(f"--adapters {name}={folder}: the name {name!r} is already in use.")
            args = LoadArguments(ckpt_dir=folder, custom_register_path=self.custom_register_path)
            if args.scores or self.scores:
                raise UsageError(f"--adapters {item}: a reward model is served alone. Start a server for each.")
            if args.sft_type == "full":
                raise UsageError(
                    f"--adapters {item}: {folder} holds full weights, not an adapter. A server has one base model: "
                    "start another server for these."
                )
            if args.model_type != self.model_type:
                raise UsageError(
                    f"--adapters {item}: the adapter was trained on {args.model_type}, but the base model is "
                    f"{self.model_type}."
                )
            if args.model_id_or_path != self.model_id_or_path and self.sft_type != "full":
                get_logger().warning(
                    "Adapter %s was trained on %s, but is served on %s.",
                    name,
                    args.model_id_or_path or args.model_type,
                    self.model_id_or_path or self.model_type,
                )
            found[name] = args
        return found


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


OF_SAMPLING = ("temperature", "top_k", "top_p")


def _number(value: Any, default: float) -> float:
    """Return a number of a checkpoint's file, as the type of the default; the default where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1000
    return type(default)(value) if is_number else default


@dataclass(kw_only=True)
class ServeArguments(ServiceArguments):
    """Server."""

    max_batch_size: int = limited(16, at_least(1))
    """Max generations in one batch."""
    max_queue: int = limited(256, at_least(1))
    """Max generations waiting in the queue; further requests get 429."""
    batching: Literal["auto", "queue", "continuous"] = "auto"
    """queue: llmtune's batching, for every model, with adapters side by side; continuous: continuous batching by
    transformers with a paged cache, for one text model without further adapters; auto: continuous on a GPU if a trial
    generation works, else queue, with the reason logged."""
    max_n: int = limited(8, at_least(1))
    """Max generations per request (`n`)."""
    max_body_size: int = limited(16 * 1024 * 1024, at_least(1))
    """Max bytes per request, images included; for text models, at most what the longest prompt takes."""
    max_prompt_length: int | None = limited(None, at_least(1))
    """Max prompt tokens; longer prompts are refused, never cut. Default: the model's context length."""
    request_timeout: float = limited(600.0, above(0))
    """Max seconds per request, waiting included."""
    adapter_root: str | None = None
    """Folder below which clients may load LoRA adapters, by POST /v1/load_lora_adapter as in vLLM: a training hands
    over its own after each step. Needs an API key. Default: none."""
    backend: Literal["llmtune", "vllm"] = "llmtune"
    """Serving engine: llmtune, or vLLM if it is installed, with the same flags."""

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.need(
            self.batching != "continuous" or not self.adapters,
            "--batching continuous serves one model: remove --adapters, or use --batching queue.",
        )
        if self.adapter_root is not None:
            self._check_adapter_root(problems, Path(self.adapter_root))
        room = self.max_batch_size + self.max_queue
        problems.need(
            self.max_n <= room, f"--max_n {self.max_n} exceeds the {room} generations that batch and queue hold."
        )

    def _check_adapter_root(self, problems: Problems, root: Path) -> None:
        problems.need(not root.exists() or root.is_dir(), f"--adapter_root {root} is not a folder.")
        problems.need(
            self.api_key is not None,
            f"--adapter_root lets clients load files, so it needs an API key: set {API_KEY_VARIABLE} in the "
            "environment, or give --api_key.",
        )
        problems.need(not self.scores, "--adapter_root is for a model that generates, not for a reward model.")
        problems.need(
            self.batching != "continuous",
            "--batching continuous serves one model: remove --adapter_root, or use --batching queue.",
        )


@dataclass(kw_only=True)
class WebArguments(ServiceArguments):
    """Web page."""

    port: int = limited(8501, between(0, 65535))
    """Port of the page; 0: a free one, shown in the start message."""
    api_key: str | None = None
    """Key that visitors type before they see the page. Better: LLMTUNE_API_KEY in the environment, which other users of
    the machine cannot see in the process list."""
    served_model_name: str | None = None
    """Name of the model on the page. Default: its key, or the name of its folder."""
    adapters: list[str] = field(default_factory=list)
    """More LoRA checkpoints of the same base, as NAME=FOLDER, for the page's list of models. If --ckpt_dir is an
    adapter itself, the list also has the base model, as `base`."""
    do_sample: bool = None  # type: ignore[assignment]
    """Sample at first; false: greedy decoding. Default: sample if a flag below or the checkpoint's
    generation_config.json says so, else greedy. The sliders of the page change it."""
    temperature: float = limited(None, at_least(0))
    """Sampling temperature at first. Default: the checkpoint's, else 0.9."""
    top_k: int = limited(None, at_least(0))
    """Sample from the k most likely tokens; 0: all. Default: the checkpoint's, else 20."""
    top_p: float = limited(None, between(0, 1, open_low=True))
    """Nucleus sampling: sample from the most likely tokens that make up this probability. Default: the checkpoint's,
    else 0.9."""
    lang: Literal["en", "zh"] = "en"
    """Language of the page."""

    GONE: ClassVar[dict[str, str]] = {"run_dir": "the curves of runs are on the board: `llmtune board --root FOLDER`."}
    """Flags of earlier versions, with what replaces them."""

    def _fill(self) -> None:
        super()._fill()
        saved = {} if self.ckpt_dir is None else read_json(Path(self.ckpt_dir) / "generation_config.json")
        if not (isinstance(saved, dict) and saved.get("do_sample") is True):
            saved = {}
        if self.do_sample is None:
            self.do_sample = bool(saved) or any(getattr(self, name) is not None for name in OF_SAMPLING)
        for name in OF_SAMPLING:
            if getattr(self, name) is None:
                setattr(self, name, _number(saved.get(name), getattr(SamplingArguments, name)))
