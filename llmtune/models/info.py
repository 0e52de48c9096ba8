"""Model entries. Data only: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llmtune.errors import UsageError
from llmtune.models.dtypes import TORCH_NAMES, Dtype, dtype_name
from llmtune.registry import Entry, Registry

AUTO = "auto"
"""Key of models without an entry: everything is read from the model's own files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo(Entry):
    """One checkpoint that can be fine-tuned.

    Attributes:
        model_id_or_path: Id on the ModelScope hub, or a local folder.
        template: Key in TEMPLATE_MAPPING.
        lora_target_modules: Names of the linear layers that LoRA adapts by default, the last part of their path.
        get_function: Loads model and tokenizer, see `llmtune.models.loading.load_causal_lm` for what it is given;
            `"module:attribute"` is imported on first use.
        get_folder: Makes or finds the model's folder itself instead of the hub; takes no argument.
        revision: Branch, tag or commit on the hub.
        hf_model_id: Id on the Hugging Face hub.
        ignore_file_pattern: Regular expressions of files that a download leaves out.
        torch_dtype: The only dtype that the weights support; None: any `--dtype`.
        requires: Additional pip requirements.
        skip_quantization: Names of modules besides the head that `--quantization_bit` does not quantise.
        architecture: The class that the checkpoint's config.json names.
        vocab_size: Of the checkpoint's config.json, where it tells families of one architecture apart.
        images: Whether rows with images can be trained: natively, only by the checkpoint's own code, or not at all.
        get_media_reader: Makes the `MediaReader` of a native vision model from its folder and tokenizer; by default one
            of images, as transformers reads them.
        verified: Whether the ids were compared with a second source.
        source: Where these facts come from.
    """

    model_id_or_path: str
    template: str = "default-generation"
    lora_target_modules: tuple[str, ...] = ()
    get_function: str | Callable[..., Any] = "llmtune.models.loading:load_causal_lm"
    get_folder: str | Callable[[], Any] | None = None
    revision: str = "master"
    hf_model_id: str | None = None
    ignore_file_pattern: tuple[str, ...] = ()
    torch_dtype: Dtype | None = None
    requires: tuple[str, ...] = ()
    skip_quantization: tuple[str, ...] = ()
    architecture: str = ""
    vocab_size: int | None = None
    images: Literal["native", "remote_code", "no"] = "no"
    get_media_reader: str | Callable[..., Any] | None = None
    verified: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("lora_target_modules", "ignore_file_pattern", "requires", "skip_quantization"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.torch_dtype is not None:  # a torch dtype is known by its text, without importing torch
            dtype = dtype_name(self.torch_dtype)
            if dtype not in TORCH_NAMES:
                raise UsageError(f"torch_dtype of a model entry is bf16, fp16 or fp32, not {self.torch_dtype!r}.")
            object.__setattr__(self, "torch_dtype", dtype)

    @property
    def lora_TM(self) -> tuple[str, ...]:
        return self.lora_target_modules


MODEL_MAPPING: Registry[ModelInfo] = Registry(
    "model",
    ModelInfo,
    builtin="llmtune.models.families",
    function_field="get_function",
    field_aliases={"lora_TM": "lora_target_modules", "model_id": "model_id_or_path"},
    entry_points="llmtune.models",
    list_command="llmtune list models",
)
register_model = MODEL_MAPPING.register
