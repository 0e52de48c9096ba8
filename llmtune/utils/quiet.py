"""Silence the chatter of the libraries below us; what matters of it, llmtune says itself."""

from __future__ import annotations

import os
import sys
import warnings

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Errors only from transformers; its bars where there is a terminal to draw them on."""
    from transformers.utils import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it warns when the data loader forks

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    # peft 0.21 asks transformers 5.23 for the former name of its own attribute
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
