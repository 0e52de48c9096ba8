"""Silence the messages of other libraries; llmtune logs the relevant ones itself."""

from __future__ import annotations

import contextlib
import logging as standard_logging
import os
import sys
import warnings

__all__ = ["quiet_gptqmodel", "quiet_libraries"]


def quiet_gptqmodel() -> None:
    """Limit gptqmodel, which writes to standard output, to errors; do nothing if it is not installed."""
    with contextlib.suppress(ImportError):
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")


def quiet_libraries() -> None:
    """Limit transformers to errors; its progress bars stay on a terminal."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it warns when the data loader forks

    logging.set_verbosity_error()
    quiet_gptqmodel()  # peft imports it wherever it is installed
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # bitsandbytes warns at every 8-bit matmul that it rounds the inputs
    standard_logging.getLogger("bitsandbytes.autograd._functions").setLevel(standard_logging.ERROR)
    # accelerate warns for each GPU that llmtune plan simulates that this machine does not have it
    standard_logging.getLogger("accelerate.utils.modeling").setLevel(standard_logging.ERROR)
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # sft warns once
    # deepspeed 0.19 calls collectives by the names that torch 2.13 has replaced
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    # peft 0.21 looks for AdaLoRA's ranks by the names of layers, where they have those of parameters
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E")
    # peft 0.21 asks transformers 5.23 for the former name of its own attribute
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
