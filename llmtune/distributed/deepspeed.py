"""DeepSpeed's configuration: the file that was asked for, as this machine can run it."""

from __future__ import annotations

import sys
from typing import Any

import torch

from llmtune.arguments.distributed import deepspeed_file, read_deepspeed
from llmtune.arguments.sft import SftArguments

__all__ = ["deepspeed_config", "leave_unimported"]


def leave_unimported() -> None:
    """Let accelerate look for DeepSpeed's engines only once deepspeed is imported: before that there are none.

    accelerate 1.15 imports it for that wherever it is installed, which costs every run 1 to 3 seconds: see
    extract_model_from_parallel in https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/utils/other.py
    """
    from accelerate.utils import other

    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def deepspeed_config(args: SftArguments) -> dict[str, Any] | None:
    """The configuration of `--deepspeed_config_path`, or None.

    A CPU has no pinned memory, and DeepSpeed's own CPU optimizer is left out there: it would be compiled first. Both
    are the same in result.

    Raises:
        UsageError: The file is no JSON object.
    """
    if args.deepspeed_config_path is None:
        return None
    file = deepspeed_file(args.deepspeed_config_path)
    assert file is not None
    config = read_deepspeed(file)
    zero = config.setdefault("zero_optimization", {})
    if zero.get("stage") == 3 and not args.only_save_model:
        zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)
    if not torch.cuda.is_available():
        config["zero_force_ds_cpu_optimizer"] = False
        for name in ("offload_optimizer", "offload_param"):
            if name in zero:
                zero[name]["pin_memory"] = False
    return config
