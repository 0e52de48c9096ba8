"""Data types of weights: our names and torch's, and the one that a model is loaded in. torch is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator

if TYPE_CHECKING:
    import torch

    from llmtune.models.info import ModelInfo

Dtype = Literal["bf16", "fp16", "fp32"]
TORCH_NAMES: dict[str, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: Any) -> str:
    """Return our name of a torch dtype, or of the text of one; any other text as it is."""
    text = str(dtype).removeprefix("torch.")
    return next((ours for ours, theirs in TORCH_NAMES.items() if theirs == text), text)


def resolve_dtype(info: ModelInfo, dtype: Any = None) -> tuple[torch.dtype, str]:
    """Return the dtype of the weights, and why.

    The entry's own takes precedence; without one: bf16, or fp16 on a GPU that lacks bf16, or fp32 on a CPU, where half
    precision is slower.

    Raises:
        UsageError: The entry supports one dtype only, and another is requested.
    """
    import torch

    wanted = torch_dtype(dtype) if dtype in TORCH_NAMES else dtype
    if info.torch_dtype is not None:
        pinned = torch_dtype(info.torch_dtype)
        if wanted not in (None, pinned):
            raise UsageError(
                f"{info.model_id_or_path} supports {info.torch_dtype} only: use --dtype {info.torch_dtype}."
            )
        return pinned, "the model's own"
    if wanted is not None:
        if not isinstance(wanted, torch.dtype):
            raise UsageError(f"Unknown dtype {dtype!r}: expected bf16, fp16 or fp32.")
        return wanted, "requested"
    if not accelerator().is_gpu:
        return torch.float32, "there is no GPU, and half precision is slower on a CPU"
    if accelerator().has_bf16:
        return torch.bfloat16, "the GPU supports it"
    return torch.float16, "the GPU does not support bf16"
