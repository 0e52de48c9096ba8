"""Silence the chatter of the libraries below us; what matters of it, llmtune says itself."""

from __future__ import annotations

import contextlib
import logging as standard_logging
import os
import sys
import warnings

__all__ = ["quiet_gptqmodel", "quiet_libraries"]


def quiet_gptqmodel() -> None:
    """Errors only from gptqmodel, which writes to the standard output; where it is not installed, nothing."""
    with contextlib.suppress(ImportError):
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")


def quiet_libraries() -> None:
    """Errors only from transformers; its bars where there is a terminal to draw them on."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it warns when the data loader forks

    logging.set_verbosity_error()
    quiet_gptqmodel()  # peft imports it wherever it is installed
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # bitsandbytes says at every 8-bit product that it rounds the inputs
    standard_logging.getLogger("bitsandbytes.autograd._functions").setLevel(standard_logging.ERROR)
    # accelerate says of each GPU that llmtune plan asks about that this machine does not have it
    standard_logging.getLogger("accelerate.utils.modeling").setLevel(standard_logging.ERROR)
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # said once, by sft
    # deepspeed 0.19 calls collectives by the names that torch 2.13 has replaced
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    # peft 0.21 looks for AdaLoRA's ranks by the names of layers, where they have those of parameters
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E")
    # peft 0.21 asks transformers 5.23 for the former name of its own attribute
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
