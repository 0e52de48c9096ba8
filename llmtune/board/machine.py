"""The machine of the board, for its head and its GPU picker. No torch: NVIDIA's own program is asked."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

QUERY = ["--query-gpu=index,name,memory.used,memory.total", "--format=csv,noheader,nounits"]
MIB = 1 << 20


@dataclass(frozen=True)
class GpuState:
    """A GPU with its memory in bytes."""

    index: int
    name: str
    used: int
    total: int


def gpu_states() -> list[GpuState]:
    """Return the NVIDIA GPUs of this machine; none where their program is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        said = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [found for line in said.splitlines() if (found := _read(line)) is not None]


def _read(line: str) -> GpuState | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not all(parts[place].isdigit() for place in (0, 2, 3)):
        return None
    return GpuState(int(parts[0]), parts[1], int(parts[2]) * MIB, int(parts[3]) * MIB)
