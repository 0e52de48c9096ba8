"""AdamW on the CPU for weights on a GPU: `--optim_offload`.

Not torchao's CPUOffloadOptimizer (0.18): it copies each gradient to the CPU as backward makes it, before it is clipped,
so that --max_grad_norm has no effect; after a state is loaded, which accelerate does at the start, its parameters on
the GPU no longer follow the schedule; and its copies of the weights have the dtype of those on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.adamw import adamw


class OffloadedAdamW(Optimizer):
    """AdamW with fp32 master weights and states in CPU memory.

    The weights themselves may be in bf16: each is the master weight, rounded. A step moves one gradient after the other
    to the CPU, as it is by then, clipped and summed over micro-batches; memory on the GPU does not grow.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            master = parameter.detach().to("cpu", torch.float32, copy=True)
            zeros = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
            state |= {"step": torch.tensor(0.0), "master": master, **zeros}
        adamw(
            [state["master"]], [_on_cpu(parameter.grad).float()], [state["exp_avg"]], [state["exp_avg_sq"]], [],
            [state["step"]], fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        parameter.copy_(_staged(state["master"].to(parameter.dtype), parameter))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike torch's own, without moving it to the device and dtype of the parameters."""
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if (found := state_dict["state"].get(number)) is not None:
                self.state[parameter] = {name: value.cpu() for name, value in found.items()}


def _on_cpu(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor if tensor.device.type == "cpu" else _pinned_like(tensor).copy_(tensor)


def _staged(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The tensor in page-locked memory, from which a GPU copies several times as fast."""
    return tensor if target.device.type == "cpu" else _pinned_like(tensor).copy_(tensor)


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    # torch keeps freed page-locked memory for the next tensor of its size
    return torch.empty_like(tensor, device="cpu", pin_memory=True)
