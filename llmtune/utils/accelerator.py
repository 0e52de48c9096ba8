"""The accelerator of this process, whatever torch drives it with: NVIDIA and AMD GPUs, Apple's, Intel's, Ascend NPUs.

Only this file asks torch for one. torch is imported on use.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Device of this process.

    Attributes:
        kind: torch's name of it: cuda (AMD's too), mps, npu, xpu ...; "cpu" where there is none.
    """

    kind: str

    @property
    def is_gpu(self) -> bool:
        """Whether there is one, of any make."""
        return self.kind != "cpu"

    @property
    def is_cuda(self) -> bool:
        """Whether kernels written for CUDA run on it, which those of AMD's GPUs are as well."""
        return self.kind == "cuda"

    @property
    def name(self) -> str:
        """Its product name, or the CPU with its threads."""
        import torch

        if not self.is_gpu:
            return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        if self.kind == "mps":
            # torch 2.9 added the name
            return str(getattr(torch.backends.mps, "get_name", lambda: "Apple GPU")())
        return str(getattr(self._module, "get_device_name", lambda: self.kind.upper())())

    @property
    def count(self) -> int:
        """Devices that this process could use; 0 on a CPU."""
        return int(self._module.device_count()) if self.is_gpu else 0

    def device(self, index: int = 0) -> str:
        """Return torch's name of a device."""
        # A Mac has one, and readers of safetensors do not know its number.
        return f"{self.kind}:{index}" if self.kind not in ("cpu", "mps") else self.kind

    def current_device(self) -> str:
        """Return the device that torch places tensors of this kind on."""
        return self.device(self._module.current_device() if self.kind not in ("cpu", "mps") else 0)

    def select(self, device: torch.device) -> None:
        """Make a device of this kind the current one."""
        if device.type == self.kind and hasattr(self._module, "set_device"):
            self._module.set_device(device)

    # Numbers

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of the current NVIDIA GPU; None on other devices."""
        import torch

        if not self.is_cuda or torch.version.hip:
            return None
        major, minor = self._module.get_device_capability()
        return int(major), int(minor)

    @property
    def has_bf16(self) -> bool:
        """Whether it computes in bf16 itself: emulation is slower than fp16."""
        import torch

        if self.kind == "mps":
            return bool(torch.backends.mps.is_macos_or_newer(14, 0))
        if self.kind in ("cuda", "xpu"):
            return bool(self._module.is_bf16_supported(including_emulation=False))
        return bool(getattr(self._module, "is_bf16_supported", lambda: True)())

    @property
    def has_float64(self) -> bool:
        return has_float64(self.kind)

    # Bytes

    def free_memory(self, index: int | None = None) -> int:
        """Free bytes of a device, the current one by default; of the machine, where both share its memory."""
        if self.kind == "mps":
            left = self._module.recommended_max_memory() - self._module.driver_allocated_memory()
            return max(min(int(left), _machine_free()), 0)
        if not self.is_gpu:
            return _machine_free()
        return int((self._module.mem_get_info() if index is None else self._module.mem_get_info(index))[0])

    def used_memory(self) -> int:
        """Bytes that this process uses now."""
        if self.kind == "mps":
            return int(self._module.current_allocated_memory())
        return int(self._module.memory_allocated()) if self.is_gpu else _resident()

    def peak_memory(self) -> int:
        """Most bytes that this process has used; of Apple's GPUs, those that it holds, which grow with the peak."""
        if self.kind == "mps":
            return int(self._module.driver_allocated_memory())
        return int(self._module.max_memory_allocated()) if self.is_gpu else _resident_peak()

    def empty_cache(self) -> None:
        """Give unused memory of torch's allocator back."""
        if self.is_gpu:
            self._module.empty_cache()

    # What torch does with it

    @property
    def backend(self) -> str:
        """Backend of torch.distributed: nccl, hccl, xccl, or gloo."""
        import torch.distributed as dist

        known = dist.Backend.default_device_backend_map if dist.is_available() else {}
        return str(known.get(self.kind, "gloo"))

    @property
    def pins_memory(self) -> bool:
        """Whether batches in page-locked memory reach it faster."""
        return self.kind not in ("cpu", "mps")

    @property
    def fuses_adamw(self) -> bool:
        """Whether torch has a fused AdamW for it that is faster."""
        return self.kind in ("cuda", "xpu")

    @property
    def needs_triton(self) -> bool:
        """Whether torch.compile writes Triton kernels for it."""
        return self.kind in ("cuda", "xpu")

    @property
    def _module(self) -> Any:
        import torch

        return getattr(torch, self.kind)


def accelerator() -> Accelerator:
    """Return the accelerator of this process; accelerate's ACCELERATE_USE_CPU=true hides it."""
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE or not torch.accelerator.is_available():
        return Accelerator("cpu")
    found = torch.accelerator.current_accelerator()
    return Accelerator("cpu" if found is None else found.type)


def has_float64(kind: str) -> bool:
    """Whether devices of a kind compute in fp64: Apple's and Ascend's do not, nor do some of Intel's."""
    import torch

    if kind == "xpu":
        return bool(torch.xpu.get_device_properties().has_fp64)
    return kind not in ("mps", "npu")


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp64: on its device, or on the CPU where the device lacks fp64."""
    return tensor.double() if has_float64(tensor.device.type) else tensor.cpu().double()


def _machine_free() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _resident_peak() -> int:
    import psutil

    try:
        import resource
    except ImportError:  # Windows, where psutil knows the peak
        now = psutil.Process().memory_info()
        return int(getattr(now, "peak_wset", now.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
