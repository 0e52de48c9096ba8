"""The library's one logger: plain lines on standard error, from the first process of a run only."""

from __future__ import annotations

import logging
import os
import sys
import warnings

__all__ = ["get_logger", "log_once"]

_said: set[str] = set()

# At every import torchao says which kernels for GPUs it does not load, and bitsandbytes that there is no `kernels`;
# gguf and tokenicer say each step of theirs.
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops", "gguf", "tokenicer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# Accelerate imports deepspeed wherever it is installed, and it tells the standard output that there is no GPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to"))
# Packages of others still bring pynvml, of which torch says at its import that it has been renamed.
warnings.filterwarnings("ignore", message="The pynvml package is deprecated", category=FutureWarning)


class _Handler(logging.Handler):
    """Looks up sys.stderr at each line, so that captured and redirected streams are honoured."""

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
    """Say a thing the first time only."""
    if message not in _said:
        _said.add(message)
        get_logger().log(level, message)
