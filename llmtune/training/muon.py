"""Muon for the matrices of the layers, AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from llmtune.errors import UsageError
from llmtune.models.heads import output_head


def matrices_of(model: Any) -> list[nn.Parameter]:
    """Return the trainable matrices of the layers: 2D weights, but embeddings and the head.

    Experts that a model stores as one 3D tensor are not among them.

    Raises:
        UsageError: There are none.
    """
    head = output_head(model)
    apart = {id(one) for one in ([] if head is None else head.parameters())}
    apart |= {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    found = [one for one in model.parameters() if one.requires_grad and one.ndim == 2 and id(one) not in apart]
    if not found:
        raise UsageError("--optim muon updates matrices, and no matrix of the layers is trained. Leave --optim out.")
    return found


class MuonAndAdamW(Optimizer):
    """torch.optim.Muon for `matrices`, torch.optim.AdamW for all else, with one schedule and one state dict.

    Muon's updates are scaled to the size of AdamW's (0.2 sqrt(max(rows, columns)), arXiv 2502.16982), so that both
    take the same learning rate and weight decay.

    Args:
        params: Parameter groups. matrices: The parameters that Muon updates.
        betas, eps: Of AdamW.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        matrices: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        by_muon = {id(one) for one in matrices}
        groups = [dict(group, params=list(group["params"])) for group in params]
        first = _part(groups, lambda one: id(one) in by_muon)
        second = _part(groups, lambda one: id(one) not in by_muon)
        self._muon = Muon(first, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(second, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay) if second else None
        rest = [] if self._adamw is None else self._adamw.param_groups
        super().__init__([*self._muon.param_groups, *rest], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on this optimizer's groups and state, which the scheduler and a checkpoint change."""
        count = len(self._muon.param_groups)
        self._muon.param_groups, self._muon.state = self.param_groups[:count], self.state
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self.param_groups[count:], self.state


def _part(groups: list[dict[str, Any]], belongs: Callable[[Any], bool]) -> list[dict[str, Any]]:
    parts = [group | {"params": [one for one in group["params"] if belongs(one)]} for group in groups]
    return [part for part in parts if part["params"]]
