"""DeepSpeed's configuration, adapted to this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llmtune
from llmtune.distributed.ranks import first_on_this_machine, is_distributed, local_rank
from llmtune.errors import UsageError
from llmtune.utils.accelerator import accelerator
from llmtune.utils.logging import get_logger
from llmtune.utils.system import free_port, need

GUIDES_CALL_THEM = re.compile(r"(?:zero|_z)[_-]?(?:stage)?[_-]?([23])(?!\d)", re.I)
"""deepspeed_zero_stage2_config (MedicalGPT), ds_config_zero3 (Qwen), ds_z3_offload_config (LLaMA-Factory)."""
GUIDES_KEEP_THEM_IN = ("finetune", "deepspeed", "scripts")


def leave_unimported() -> None:
    """Let accelerate check for DeepSpeed engines only once deepspeed is imported."""
    from accelerate.utils import other

    # upstream: accelerate 1.15.0 accelerate/utils/other.py: imports deepspeed wherever it is installed, 1 to 3 s
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def ready_deepspeed() -> None:
    """Set the environment that DeepSpeed reads at import."""
    with first_on_this_machine("extensions"):
        if local_rank() == 0:
            release_dead_builds()
    # upstream: deepspeed 0.19.8 deepspeed/accelerator/real_accelerator.py: would take an MPS or XPU device on a CPU run
    os.environ.setdefault("DS_ACCELERATOR", accelerator().kind)
    if not is_distributed():  # DeepSpeed needs a process group even for one process
        defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**defaults, "MASTER_PORT": str(free_port("127.0.0.1", 0))}.items():
            os.environ.setdefault(name, value)


def deepspeed_config(name: str | None, *, only_save_model: bool | None) -> dict[str, Any] | None:
    """Return the configuration of `--deepspeed_config_path`, adapted to this machine; None without one.

    A CPU has no pinned memory, and DeepSpeed's own CPU optimizer is left out there: it would be compiled first. Both
    are the same in result.

    Raises:
        UsageError: The file is not a JSON object.
    """
    if name is None:
        return None
    file = deepspeed_file(name)
    assert file is not None
    config = read_deepspeed(file)
    zero = config.setdefault("zero_optimization", {})
    if zero.get("stage") == 3 and not only_save_model:
        zero.setdefault("stage3_gather_16bit_weights_on_model_save", True)
    if not accelerator().is_gpu:
        config["zero_force_ds_cpu_optimizer"] = False
        for name in ("offload_optimizer", "offload_param"):
            if name in zero:
                zero[name]["pin_memory"] = False
    return config


def zero_stage(name: str | None) -> int:
    """ZeRO stage of a DeepSpeed configuration, read from the file's content; 0 without one.

    Raises:
        UsageError: The file is not a DeepSpeed configuration.
    """
    file = None if name is None else deepspeed_file(name)
    if file is None:
        return 0
    stage = read_deepspeed(file).get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise UsageError(f"--deepspeed_config_path {file}: zero_optimization.stage is {stage!r}, not 0, 1, 2 or 3.")
    return int(stage)


def read_deepspeed(file: Path) -> dict[str, Any]:
    """Read a DeepSpeed configuration.

    Raises:
        UsageError: The file is not a JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise UsageError(f"--deepspeed_config_path {file} cannot be read: {err}.") from err
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise UsageError(f"--deepspeed_config_path {file} is not a DeepSpeed configuration (a JSON object).")
    return config


def packaged_configs() -> list[str]:
    """Names of the DeepSpeed configurations that come with llmtune."""
    return sorted(file.stem for file in _packaged_folder().glob("*.json"))


def deepspeed_file(name: str) -> Path | None:
    """The file of `--deepspeed_config_path`: a path, or the name of a packaged one."""
    given = Path(name).expanduser()
    if given.is_file():
        return given
    if given.parent.name not in ("", "ds_config", *GUIDES_KEEP_THEM_IN):
        return None
    stem = given.name.removesuffix(".json")
    packaged = _packaged_folder() / f"{stem}.json"
    if not packaged.is_file() and (found := GUIDES_CALL_THEM.search(stem)):
        offload = "_offload" if "offload" in stem else ""
        packaged = _packaged_folder() / f"zero{found[1]}{offload}.json"
    return packaged if packaged.is_file() else None


def _packaged_folder() -> Path:
    package = Path(llmtune.__file__).parent
    installed = package / "ds_config"
    return installed if installed.is_dir() else package.parent / "ds_config"


def need_deepspeed() -> None:
    """Raise MissingPackageError if deepspeed is not installed; importing it would take seconds."""
    need("deepspeed", "--deepspeed_config_path", extra="deepspeed")


# Locks that a killed process left on an extension build


LONGEST_BUILD_SECONDS = 300
"""Max age in seconds of another machine's lock: DeepSpeed's largest extension builds in two minutes on two cores."""
POLL_SECONDS = 0.5
LOCK_FILE = "lock"
GUARD_FILE = ".llmtune.lock"


def release_dead_builds(root: Path | None = None, longest: float = LONGEST_BUILD_SECONDS) -> None:
    """Remove locks that no process holds; wait for those that another machine may hold, on a shared file system.

    Args:
        root: The folder of extensions; None for torch's own.
        longest: Seconds after which nobody builds any more.
    """
    from torch.utils import cpp_extension

    # upstream: torch 2.13.0 torch/utils/cpp_extension.py: waits forever, silently, for the lock of a killed build
    if "FileBaton" not in cpp_extension._jit_compile.__code__.co_names:
        return
    root = Path(cpp_extension._get_build_directory("llmtune", verbose=False)).parent if root is None else root
    for lock in sorted(root.glob(f"*/{LOCK_FILE}")):
        told = False
        while (age := _age(lock)) is not None and not _is_held(lock):
            if age > longest:
                _remove(lock, longest)
            elif not told:
                get_logger().warning(
                    f"{lock} marks {lock.parent.name} as being compiled, but no process of this machine does so: "
                    f"waiting up to {longest - age:.0f} s for another machine. If there is none, remove that file."
                )
                told = True
            time.sleep(min(POLL_SECONDS, longest))


def _remove(lock: Path, longest: float) -> None:
    with _guarded(lock.parent.parent):
        age = _age(lock)
        if age is not None and age > longest and not _is_held(lock):
            lock.unlink(missing_ok=True)
            get_logger().warning(f"Removed {lock}, left by a process that was killed during compilation.")


@contextlib.contextmanager
def _guarded(root: Path) -> Iterator[None]:
    """Run one process at a time: between check and removal, no other may start a build of that name."""
    try:
        import fcntl

        file = open(root / GUARD_FILE, "a", encoding="utf-8")  # noqa: SIM115, closed below
    except (ImportError, OSError):
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _age(lock: Path) -> float | None:
    try:
        return time.time() - lock.stat().st_mtime
    except OSError:
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process of this user and machine has the file open."""
    import psutil

    path = os.path.realpath(lock)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(os.path.realpath(file.path) == path for file in process.open_files()):
                return True
    return False
