"""The library's one logger: plain lines on standard error from the first process; other libraries are silenced."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

__all__ = ["get_logger", "log_once", "quiet_gptqmodel", "quiet_libraries"]


_said: set[str] = set()

# At import, torchao logs the GPU kernels that it does not load, bitsandbytes that there is no `kernels`; gguf and
# tokenicer log each step.
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops", "gguf", "tokenicer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# Accelerate imports deepspeed wherever it is installed, which logs to standard output that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to"))
# Other packages still depend on pynvml, which torch warns at import has been renamed.
warnings.filterwarnings("ignore", message="The pynvml package is deprecated", category=FutureWarning)


class _Handler(logging.Handler):
    """Handler that looks up sys.stderr at each line, so that captured and redirected streams work."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        sys.stderr.write(f"{mark}{record.getMessage()}\n")


def get_logger() -> logging.Logger:
    logger = logging.getLogger("llmtune")
    if not logger.handlers:
        logger.addHandler(_Handler())
        logger.propagate = False
        logger.setLevel(logging.INFO if int(os.environ.get("RANK", "0") or 0) <= 0 else logging.ERROR)
    return logger


def log_once(message: str, *, level: int = logging.WARNING) -> None:
    """Log a message the first time only."""
    if message not in _said:
        _said.add(message)
        get_logger().log(level, message)


# Silence the messages of other libraries; llmtune logs the relevant ones itself


def quiet_gptqmodel() -> None:
    """Limit gptqmodel, which writes to standard output, to errors; do nothing if it is not installed."""
    with contextlib.suppress(ImportError):
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")


def quiet_libraries() -> None:
    """Limit transformers to errors; its progress bars stay on a terminal."""
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or it warns when the data loader forks

    transformers_logging.set_verbosity_error()
    quiet_gptqmodel()  # peft imports it wherever it is installed
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    # bitsandbytes warns at every 8-bit matmul that it rounds the inputs
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # accelerate warns for each GPU that llmtune plan simulates that this machine does not have it
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # sft warns once
    # deepspeed 0.19 calls collectives by the names that torch 2.13 has replaced
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    # peft 0.21 looks for AdaLoRA's ranks by the names of layers, where they have those of parameters
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E")
    # peft 0.21 asks transformers 5.23 for the former name of its own attribute
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
