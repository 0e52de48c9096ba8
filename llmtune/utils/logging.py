"""The library's logger: plain lines on standard error, from the first process of a run only."""

from __future__ import annotations

import logging
import os
import sys
import warnings

__all__ = ["get_logger", "log_once"]

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
