"""The library's one logger: plain lines on standard error from the first process; other libraries are silenced."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

_said: set[str] = set()

for _name in (
    # upstream: torchao 0.18.0 torchao/__init__.py: logs at import the GPU kernels that it does not load
    "torchao",
    # upstream: torch 2.13.0 torch/utils/_pytree.py: logs at import how torchao registers its enums
    "torch.utils._pytree",
    # upstream: bitsandbytes 0.50.2 bitsandbytes/backends/cpu/ops.py: logs at import that there is no `kernels`
    "bitsandbytes.backends.cpu.ops",
    # upstream: gguf 0.19.0 gguf/gguf_writer.py: logs each step
    "gguf",
    # upstream: tokenicer 0.0.14 tokenicer/tokenicer.py: logs each step
    "tokenicer",
):
    logging.getLogger(_name).setLevel(logging.ERROR)
# upstream: deepspeed 0.19.8 deepspeed/accelerator/real_accelerator.py: logs to standard output that it found no GPU
logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator to"))
# upstream: pynvml 13.0.1 _pynvml_redirector.py: warns when torch imports it that it was renamed
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

        # upstream: gptqmodel 7.7.0 gptqmodel/utils/logger.py: logs each step to standard output
        LogBar.shared().setLevel("ERROR")


def quiet_libraries() -> None:
    """Limit transformers to errors; its progress bars stay on a terminal."""
    from transformers.utils import logging as transformers_logging

    # upstream: tokenizers 0.23.3 no issue: warns when the data loader forks
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    # upstream: bitsandbytes 0.50.2 bitsandbytes/autograd/_functions.py: warns at every 8-bit matmul of rounded inputs
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # upstream: accelerate 1.15.0 accelerate/utils/modeling.py: warns of each GPU that llmtune plan simulates
    logging.getLogger("accelerate.utils.modeling").setLevel(logging.ERROR)
    # upstream: bitsandbytes 0.50.2 bitsandbytes/optim/optimizer.py: warns at every optimizer; sft warns once
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    # upstream: deepspeed 0.19.8 deepspeed/comm/torch.py: calls collectives by names that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    # upstream: peft 0.21.2 peft/tuners/tuners_utils.py: looks for AdaLoRA's ranks by layers, not by parameters
    warnings.filterwarnings("ignore", message=r"The following rank_pattern keys did not match .*\.lora_E")
    # upstream: peft 0.21.2 peft/peft_model.py: asks transformers 5.23 for an attribute's former name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
