"""Losses from the logits of a chunk of positions at a time: [B, T, V] is never built.

Each chunk is projected, normalised and dropped; its gradient is computed while its logits exist.

Shapes: K positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_POSITIONS = 256
"""Positions whose logits exist at a time: at V = 152,000 in fp32, 156 MB. See benchmarks/loss.py."""


@dataclass(frozen=True)
class LogitMap:
    """Transformation of logits after the head: in some models `softcap * tanh(scale * logits / softcap)`.

    `temperature`: divides them in the end, as in sampling.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / self.temperature if self.temperature != 1.0 else logits

    def backward(self, grad: Tensor, mapped: Tensor) -> Tensor:
        if self.temperature != 1.0:
            grad = grad / self.temperature
        if self.softcap is not None:
            grad = grad * (1 - (mapped * self.temperature / self.softcap) ** 2)
        return grad * self.scale if self.scale != 1.0 else grad


def supervised_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    logit_map: LogitMap = LogitMap(),
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the head's logits, times the weights, summed.

    Args:
        hidden: Hidden states at trainable positions, [K, H].
        head: From H to V; an nn.Linear takes the way without stored logits, anything else is recomputed in backward.
        targets: Token ids, [K].
        weights: Of the positions, [K] in fp32; None: all are 1.

    Returns:
        The sum as a scalar in fp32, and the number of positions whose most likely token is the target; that is
        counted in evaluation only, where no gradient is taken.
    """
    if type(head) is nn.Linear:
        with_grad = torch.is_grad_enabled()  # inside forward() it is always off
        found = _ChunkedCrossEntropy.apply(hidden, head.weight, head.bias, targets, logit_map, with_grad, weights)
        return found
    total = hidden.sum() * 0.0
    correct = torch.zeros((), dtype=torch.long, device=hidden.device)

    def one_chunk(chunk: Tensor, chunk_targets: Tensor, chunk_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = logit_map(head(chunk).float())
        return _summed(logits, chunk_targets, chunk_weights), _num_correct(logits, chunk_targets)

    for part in chunks(len(targets)):
        loss, right = checkpoint(one_chunk, hidden[part], targets[part], _part(weights, part), use_reentrant=False)
        total = total + loss
        correct = correct + right
    return total.float(), correct


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies; the gradients are made in the forward pass, chunk by chunk, and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        with_grad: bool,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        device_type, dtype = hidden.device.type, _compute_dtype(hidden)
        needs_hidden, needs_weight, needs_bias = (with_grad and needed for needed in ctx.needs_input_grad[:3])
        with torch.autocast(device_type, enabled=False):
            cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
            grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
            total = hidden.new_zeros((), dtype=torch.float32)
            correct = torch.zeros((), dtype=torch.long, device=hidden.device)
            workspace = hidden.new_empty((min(len(targets), CHUNK_POSITIONS), len(weight)), dtype=dtype)
            for part in chunks(len(targets)):
                chunk, chunk_targets = hidden[part].to(dtype), targets[part]
                logits = torch.mm(chunk, cast_weight.t(), out=workspace[: len(chunk)])
                if cast_bias is not None:
                    logits += cast_bias
                if not (needs_hidden or needs_weight or needs_bias):
                    mapped = logit_map(logits.float())
                    total += _summed(mapped, chunk_targets, _part(weights, part))
                    correct += _num_correct(mapped, chunk_targets)
                    continue
                loss, grad = _loss_and_gradient(logits, chunk_targets, logit_map, _part(weights, part))
                total += loss
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = (grad @ cast_weight).to(hidden.dtype)
                if grad_weight is not None and dtype is torch.float32:
                    grad_weight.addmm_(grad.t(), chunk)
                elif grad_weight is not None:
                    grad_weight += grad.t() @ chunk
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            # In fp32: the scale of a loss scaler alone may lie beyond fp16.
            None if grad_hidden is None else (grad_hidden.float() * grad_total.float()).to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * grad_total).to(weight_dtype),
            None if grad_bias is None else (grad_bias * grad_total).to(bias_dtype),
            None,
            None,
            None,
            None,
        )


def _part(weights: Tensor | None, part: slice) -> Tensor | None:
    return None if weights is None else weights[part]


def _summed(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return functional.cross_entropy(logits, targets, reduction="sum")
    return functional.cross_entropy(logits, targets, reduction="none") @ weights


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, logit_map: LogitMap, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The summed loss of a chunk, and its gradient by the logits [n, V] in fp32, which may take the logits' place."""
    normaliser, at_target, grad = cross_entropy_parts(logits, targets, logit_map)
    if weights is None:
        return normaliser.sum() - at_target.sum(), grad
    return (normaliser - at_target) @ weights, grad.mul_(weights[:, None])


def cross_entropy_parts(
    logits: Tensor, targets: Tensor, logit_map: LogitMap, entropies: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exp [n] and target logits [n] of a chunk, and the gradient of their difference by the logits.

    All in fp32, or in fp64 where the logits are.
    The gradient, [n, V], may take the logits' place. `entropies`: filled with those of the distributions, [n].
    """
    mapped = logit_map(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    keeps_mapped = logit_map.softcap is not None
    rows = torch.arange(len(targets), device=targets.device)
    at_target = mapped[rows, targets]
    highest = mapped.amax(-1, keepdim=True)
    grad = torch.exp(mapped - highest) if keeps_mapped else mapped.sub_(highest).exp_()
    sums = grad.sum(-1, keepdim=True)
    grad.div_(sums)
    if entropies is not None:
        entropies.copy_(torch.special.entr(grad).sum(-1))
    grad[rows, targets] -= 1
    return (sums.log() + highest).squeeze(-1), at_target, logit_map.backward(grad, mapped)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """Dtype of the head's matmuls: that of autocast, where it is on."""
    autocast = torch.is_autocast_enabled(hidden.device.type)
    return torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype


def chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK_POSITIONS, length)) for start in range(0, length, CHUNK_POSITIONS))


def _num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).sum()


# Log-probabilities of single tokens, for losses over responses


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    logit_map: LogitMap = LogitMap(),
    entropies: Tensor | None = None,
) -> Tensor:
    """Return the log-probability of each target, [K] in fp32, or in fp64 where the hidden states are.

    Args:
        hidden: Hidden states that predict the targets, [K, H].
        head: From H to V; an nn.Linear takes the way without stored logits, anything else is recomputed in backward.
        targets: Token ids, [K].
        entropies: Filled with the entropy of the distribution of each, [K].
    """
    if type(head) is nn.Linear:
        with_grad = torch.is_grad_enabled()  # inside forward() it is always off
        logps: Tensor = _TokenLogps.apply(hidden, head.weight, head.bias, targets, logit_map, with_grad, entropies)
        return logps

    def one_chunk(chunk: Tensor, chunk_targets: Tensor, chunk_entropies: Tensor | None) -> Tensor:
        return _plain_logps(head(chunk), chunk_targets, logit_map, chunk_entropies)

    parts = [
        checkpoint(one_chunk, hidden[part], targets[part], _part(entropies, part), use_reentrant=False)
        for part in chunks(len(targets))
    ]
    return torch.cat(parts) if parts else hidden.sum(-1).float() * 0.0


def _plain_logps(logits: Tensor, targets: Tensor, logit_map: LogitMap, entropies: Tensor | None = None) -> Tensor:
    mapped = logit_map(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    if entropies is not None:
        entropies.copy_(torch.special.entr(mapped.detach().softmax(-1)).sum(-1))
    return mapped.gather(-1, targets[:, None]).squeeze(-1) - mapped.logsumexp(-1)


class _TokenLogps(torch.autograd.Function):
    """Log-probabilities; the gradient by each hidden state is made in forward, and scaled in backward by what it gets.

    The head's own gradient, where it is trained, is computed in backward, from the logits of a chunk at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        with_grad: bool,
        entropies: Tensor | None,
    ) -> Tensor:
        device_type, dtype = hidden.device.type, _compute_dtype(hidden)
        needs_hidden = with_grad and ctx.needs_input_grad[0]
        needs_head = with_grad and any(ctx.needs_input_grad[1:3])
        logps = hidden.new_empty(len(targets), dtype=torch.promote_types(dtype, torch.float32))
        unit = torch.empty_like(hidden) if needs_hidden else None
        with torch.autocast(device_type, enabled=False):
            cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for part in chunks(len(targets)):
                logits = _project(hidden[part].to(dtype), cast_weight, cast_bias)
                own = _part(entropies, part)
                if unit is None:
                    logps[part] = _plain_logps(logits, targets[part], logit_map, own)
                    continue
                normaliser, at_target, grad = cross_entropy_parts(logits, targets[part], logit_map, own)
                logps[part] = at_target - normaliser
                unit[part] = (grad.to(dtype) @ cast_weight).neg_().to(hidden.dtype)
        ctx.save_for_backward(unit, *((hidden, weight, bias, targets) if needs_head else ()))
        ctx.logit_map, ctx.dtype = logit_map, dtype
        return logps

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor | None, ...]:
        unit, *head = ctx.saved_tensors
        by_hidden = None if unit is None else (unit * grad_logps[:, None]).to(unit.dtype)
        by_weight, by_bias = _head_gradients(ctx, grad_logps, *head) if head else (None, None)
        return by_hidden, by_weight, by_bias, None, None, None, None


def _head_gradients(
    ctx: Any, grad_logps: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    needs_weight, needs_bias = ctx.needs_input_grad[1:3]
    by_weight = torch.zeros_like(weight, dtype=grad_logps.dtype) if needs_weight else None
    by_bias = torch.zeros_like(bias, dtype=grad_logps.dtype) if bias is not None and needs_bias else None
    with torch.autocast(hidden.device.type, enabled=False):
        cast_weight, cast_bias = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        for part in chunks(len(targets)):
            chunk = hidden[part].to(ctx.dtype)
            _, _, grad = cross_entropy_parts(_project(chunk, cast_weight, cast_bias), targets[part], ctx.logit_map)
            grad.mul_(-grad_logps[part, None])
            if by_bias is not None:
                by_bias += grad.sum(0)
            if by_weight is not None:
                by_weight += (grad.to(ctx.dtype).t() @ chunk).to(by_weight.dtype)
    return (
        None if by_weight is None else by_weight.to(weight.dtype),
        None if by_bias is None or bias is None else by_bias.to(bias.dtype),
    )


def _project(chunk: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = chunk @ weight.t()
    return logits if bias is None else logits + bias
