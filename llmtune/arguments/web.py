"""The arguments of `llmtune web`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llmtune.arguments.answering import ServiceArguments
from llmtune.arguments.rules import between

__all__ = ["WebArguments"]


@dataclass(kw_only=True)
class WebArguments(ServiceArguments):
    """Web page."""

    port: int = field(default=8501, metadata={"within": between(0, 65535)})
    """Port of the page; 0: a free one, shown in the start message."""
    api_key: str | None = None
    """Key that visitors type before they see the page. Better: LLMTUNE_API_KEY in the environment, which other users of
    the machine cannot see in the process list."""
    served_model_name: str | None = None
    """Name of the model on the page. Default: its key, or the name of its folder."""
    adapters: list[str] = field(default_factory=list)
    """More LoRA checkpoints of the same base, as NAME=FOLDER, for the page's list of models. If --ckpt_dir is an
    adapter itself, the list also has the base model, as `base`."""
    run_dir: str | None = None
    """Folder of runs for the training tab. Default: that of the checkpoint's run, else ./output."""
    lang: Literal["en", "zh"] = "en"
    """Language of the page."""
