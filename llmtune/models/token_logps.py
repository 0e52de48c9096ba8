"""Log-probabilities of tokens, with gradient, without the logits of a whole batch: for losses over responses.

Each chunk of positions is projected, normalised and dropped. The gradient by the hidden states is kept per position, in
the size of the hidden states, and scaled by what the loss gives back; the head's own gradient, where it is trained, is
computed in backward from the logits of a chunk at a time.

Shapes: K positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmtune.models.supervised_loss import LogitMap, chunks, cross_entropy_parts

PLAIN = LogitMap()


def token_logps(hidden: Tensor, head: nn.Module, targets: Tensor, logit_map: LogitMap = PLAIN) -> Tensor:
    """Return the log-probability of each target, [K] in fp32, or in fp64 where the hidden states are.

    Args:
        hidden: Hidden states that predict the targets, [K, H].
        head: From H to V; an nn.Linear takes the way without stored logits, anything else is recomputed in backward.
        targets: Token ids, [K].
    """
    if type(head) is nn.Linear:
        with_grad = torch.is_grad_enabled()  # inside forward() it is always off
        apply: Any = _TokenLogps.apply
        logps: Tensor = apply(hidden, head.weight, head.bias, targets, logit_map, with_grad)
        return logps

    def one_chunk(chunk: Tensor, chunk_targets: Tensor) -> Tensor:
        logits = logit_map(head(chunk).float())
        return logits.gather(-1, chunk_targets[:, None]).squeeze(-1) - logits.logsumexp(-1)

    parts = [checkpoint(one_chunk, hidden[part], targets[part], use_reentrant=False) for part in chunks(len(targets))]
    return torch.cat(parts) if parts else hidden.sum(-1).float() * 0.0


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logit_map: LogitMap,
        with_grad: bool,
    ) -> Tensor:
        device_type = hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
        needs_hidden = with_grad and ctx.needs_input_grad[0]
        needs_head = with_grad and any(ctx.needs_input_grad[1:3])
        logps = hidden.new_empty(len(targets), dtype=torch.promote_types(dtype, torch.float32))
        unit = torch.empty_like(hidden) if needs_hidden else None
        with torch.autocast(device_type, enabled=False):
            cast_weight, cast_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            for part in chunks(len(targets)):
                logits = _project(hidden[part].to(dtype), cast_weight, cast_bias)
                normaliser, at_target, grad = cross_entropy_parts(logits, targets[part], logit_map)
                logps[part] = at_target - normaliser
                if unit is not None:
                    unit[part] = (grad.to(dtype) @ cast_weight).neg_().to(hidden.dtype)
        ctx.save_for_backward(unit, *((hidden, weight, bias, targets) if needs_head else ()))
        ctx.logit_map, ctx.dtype = logit_map, dtype
        return logps

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor | None, ...]:
        unit, *head = ctx.saved_tensors
        by_hidden = None if unit is None else (unit * grad_logps[:, None]).to(unit.dtype)
        by_weight, by_bias = _head_gradients(ctx, grad_logps, *head) if head else (None, None)
        return by_hidden, by_weight, by_bias, None, None, None


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
