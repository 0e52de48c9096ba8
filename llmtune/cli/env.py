"""`llmtune env`: one paste for a bug report. Variables are named; values only where they cannot hold a secret."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtune import __version__
from llmtune.arguments.environment import EnvArguments
from llmtune.arguments.parser import parse
from llmtune.cli.words import print_json
from llmtune.utils.accelerator import accelerator

ARGUMENTS = EnvArguments
SUMMARY = """
Print versions, GPUs, memory and settings of this machine, to paste into a bug report. Tokens, paths and host names are
not printed; environment variables are named, and a value is shown only where it is a number, a switch or a list.
  llmtune env
  llmtune env --json true
"""
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "numpy", "pyarrow"),
    *("modelscope", "modelscope-hub", "huggingface-hub", "bitsandbytes", "torchao", "gptqmodel", "deepspeed"),
    *("flash-attn", "liger-kernel", "kernels", "vllm", "ray", "skypilot", "tensorboard", "tensorboardX", "wandb"),
    *("swanlab", "mlflow", "trackio", "streamlit", "nicegui", "fastapi", "gguf", "lm-eval", "torch-npu"),
)
PREFIXES = (
    *("CUDA_", "NCCL_", "GLOO_", "HIP_", "ROCR_", "HSA_", "ASCEND_", "ZE_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_"),
    *("TRITON_", "OMP_", "MKL_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "MODELSCOPE_", "USE_HF"),
    *("USE_MODELSCOPE", "WANDB_", "SWANLAB_", "MLFLOW_", "TRACKIO_", "LLMTUNE_", "DS_", "ACCELERATE_", "SLURM_JOB"),
    *("MASTER_", "NPROC_PER_NODE", "NNODES", "NODE_RANK", "VLLM_"),
)
EXACTLY = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "LANG", "LC_ALL"),
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|AUTH|CRED|LLMTUNE_HIDDEN", re.I)
PLAIN = re.compile(r"[0-9.,:\s-]{1,40}|true|false|yes|no|on|off|auto|expandable_segments:(?:True|False)", re.I)
"""Values that cannot hold a secret: numbers, lists of numbers, switches."""


def run(argv: Sequence[str]) -> int:
    args = parse(ARGUMENTS, argv, command="env", summary=SUMMARY)
    found = facts(with_torch=args.torch)
    if args.json:
        print_json(found)
    else:
        sys.stdout.write(as_text(found))
    return 0


def facts(*, with_torch: bool = True) -> dict[str, Any]:
    """Collect what a bug report needs."""
    return {
        "llmtune": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": _cpus(),
        "memory_gib": _memory(),
        "disk_free_gib": round(shutil.disk_usage(".").free / 2**30, 1),
        "packages": _versions(),
        "accelerators": _accelerators() if with_torch else [],
        "driver": _driver(),
        "environment": variables(os.environ),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Rows of names and values, a block for each group."""
    rows = {name: value for name, value in found.items() if not isinstance(value, (dict, list)) and value is not None}
    groups = {"accelerators": dict(enumerate(found["accelerators"])), **{
        name: found[name] for name in ("packages", "environment")
    }}  # fmt: skip
    blocks = [_rows(rows)]
    for name, group in groups.items():
        blocks.append(f"\n{name}:\n" + (_rows(group, "  ") if group else "  none\n"))
    return "".join(blocks)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Relevant variables: the value where it cannot hold a secret, else `set`."""
    names = sorted(name for name in environment if name in EXACTLY or name.startswith(PREFIXES))
    return {name: _value(name, environment[name]) for name in names if not name.startswith("LLMTUNE_HIDDEN")}


def _value(name: str, value: str) -> str:
    if not value:
        return "set, empty"
    return value if not SECRET.search(name) and PLAIN.fullmatch(value) else "set"


def _rows(rows: Mapping[Any, Any], indent: str = "") -> str:
    width = max(len(str(name)) for name in rows)
    return "".join(f"{indent}{name!s:<{width}}  {value}\n" for name, value in rows.items())


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of a source checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    done = _output(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"])
    return done or None


def _cpus() -> str:
    affinity = getattr(os, "sched_getaffinity", None)  # Windows and macOS lack it
    usable = len(affinity(0)) if affinity is not None else os.cpu_count()
    return f"{usable} of {os.cpu_count()}, {platform.machine()}"


def _memory() -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    return round(float(psutil.virtual_memory().total) / 2**30, 1)


def _driver() -> str | None:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).partition("\n")[0] or None


def _output(command: Sequence[str]) -> str:
    """Return the output of a command; "" if it is not here or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if not done.returncode else ""


def _accelerators() -> list[str]:
    """One line for each device that torch would use; a torch that does not import is a fact of the report, too."""
    try:
        import torch
    except Exception as err:
        return [f"torch does not import: {type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}".strip()]
    found = accelerator()
    module = torch.get_device_module(found.kind) if found.is_gpu else None
    return [_device(module, found.kind, index) for index in range(found.count)]


def _device(module: Any, kind: str, index: int) -> str:
    try:
        found = module.get_device_properties(index)
    except Exception:  # MPS, and devices that torch cannot open
        return kind
    built = getattr(sys.modules["torch"].version, kind, None)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB" + (f", {kind} {built}" if built else "")
