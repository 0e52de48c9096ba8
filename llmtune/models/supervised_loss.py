"""Supervised loss at trainable positions only: the head skips positions whose label is IGNORE_INDEX.

The head is applied in chunks, and each chunk's gradient is computed while its logits exist, so that logits of the whole
batch, [B, T, V], are never built, in training or evaluation.

Shapes: B samples, T tokens, K trainable positions of a batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from llmtune.types import IGNORE_INDEX
from llmtune.utils.logging import get_logger

CHUNK_POSITIONS = 256
"""Positions whose logits exist at a time: at V = 152,000 in fp32, 156 MB. See benchmarks/loss.py."""

PROBE_LENGTH = 8


@dataclass
class SupervisedLoss(ModelOutput):
    """Output of a model with the supervised loss, given labels.

    `loss`: the sum over trainable tokens, each times its weight, divided by `num_items_in_batch`, or by the sum of the
    weights, `total_weight`: their mean. `num_trainable`: K, which is that sum where all weigh 1. `num_correct`: how
    many of them are the most likely token; counted in evaluation only.
    """

    loss: Tensor | None = None
    num_trainable: Tensor | None = None
    num_correct: Tensor | None = None
    total_weight: Tensor | None = None


@dataclass(frozen=True)
class LogitMap:
    """Transformation of logits after the head in some models: `softcap * tanh(scale * logits / softcap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def backward(self, grad: Tensor, mapped: Tensor) -> Tensor:
        if self.softcap is not None:
            grad = grad * (1 - (mapped / self.softcap) ** 2)
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
        device_type = hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
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


def cross_entropy_parts(logits: Tensor, targets: Tensor, logit_map: LogitMap) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exp [n] and target logits [n] of a chunk, and the gradient of their difference by the logits.

    All in fp32, or in fp64 where the logits are.
    The gradient, [n, V], may take the logits' place.
    """
    mapped = logit_map(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    keeps_mapped = logit_map.softcap is not None
    rows = torch.arange(len(targets), device=targets.device)
    at_target = mapped[rows, targets]
    highest = mapped.amax(-1, keepdim=True)
    grad = torch.exp(mapped - highest) if keeps_mapped else mapped.sub_(highest).exp_()
    sums = grad.sum(-1, keepdim=True)
    grad.div_(sums)
    grad[rows, targets] -= 1
    return (sums.log() + highest).squeeze(-1), at_target, logit_map.backward(grad, mapped)


def install_supervised_loss(model: nn.Module) -> None:
    """Give a causal language model a forward that computes the supervised loss with labels, and its own output without.

    The model is changed in place, at its innermost: wrappers (PEFT, DDP, FSDP) keep working around it. Whether
    decoder and head together make the model's own logits is tried on a few tokens; a model where they do not keeps
    its own forward and pays for all the logits, with a warning.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer
    own_forward = inner.forward
    logit_map = _logit_map(inner.config)
    head = inner.get_output_embeddings()
    if type(head) is nn.Linear:
        # upstream: torch 2.13.0 no issue: sharded weights are gathered around forward, so the loss is computed there
        head.forward = partial(_head_forward, head)  # type: ignore[method-assign]

    @cache
    def is_exact() -> bool:
        exact = _same_logits(inner, logit_map)
        if not exact:
            text = "%s computes its logits in its own way: the loss needs all of them, which costs memory."
            get_logger().warning(text, type(inner).__name__)
        return exact

    if not has_sharded_weights(inner):  # else it is tried in the first step, when the weights are brought together
        is_exact()

    def forward(self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            kwargs.pop("num_items_in_batch", None)
            kwargs.pop("loss_weights", None)
            return own_forward(*args, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        bits = kwargs.pop("loss_weights", None)  # of float32, see collate.py
        kwargs["use_cache"] = False
        trainable = labels[:, 1:] != IGNORE_INDEX
        if is_exact():
            # The decoder of a model that sees is its language part alone; the images enter around it.
            body = inner.base_model if "pixel_values" in kwargs else inner.get_decoder()
            states, head = body(*args, **kwargs).last_hidden_state, inner.get_output_embeddings()
        else:
            states, head = own_forward(*args, **kwargs).logits, None
        trainable = trainable.to(states.device)  # the model may lie on several devices
        targets = labels[:, 1:].to(states.device)[trainable]
        states = states[:, :-1][trainable]
        weights = None if bits is None else bits.view(torch.float32)[:, 1:].to(states.device)[trainable]
        if head is None:
            total, correct = supervised_cross_entropy(states, nn.Identity(), targets, weights=weights)
        elif type(head) is nn.Linear:
            total, correct = head(states, targets, logit_map, weights)
        else:
            total, correct = supervised_cross_entropy(states, head, targets, logit_map, weights)
        count = torch.tensor(len(targets), device=total.device)
        weight = count if weights is None else weights.sum()
        divisor: Any = max(len(targets), 1) if weights is None or not len(targets) else weight
        if num_items is not None:
            divisor = torch.as_tensor(num_items, device=total.device)
        return SupervisedLoss(loss=total / divisor, num_trainable=count, num_correct=correct, total_weight=weight)

    # upstream: transformers 5.23.0 transformers/generation/utils.py: checks the arguments of generate by it
    forward.__signature__ = inspect.signature(type(inner).forward)  # type: ignore[attr-defined]
    # upstream: transformers 5.23.0 transformers/models/llama/modeling_llama.py: its loss takes all logits, ours states
    inner.forward = types.MethodType(forward, inner)


def has_sharded_weights(model: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the weights: they are gathered within a step only."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _head_forward(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor | None = None,
    logit_map: LogitMap = LogitMap(),
    weights: Tensor | None = None,
) -> Any:
    """The head's own forward or, with targets, the loss.

    Called as a module, since sharding frameworks gather weights around such calls.
    """
    if targets is None:
        return functional.linear(hidden, head.weight, head.bias)
    return supervised_cross_entropy(hidden, head, targets, logit_map, weights)


def _same_logits(inner: Any, logit_map: LogitMap) -> bool:
    was_training = inner.training
    inner.eval()
    try:
        ids = torch.arange(1, PROBE_LENGTH + 1, device=inner.device)[None]
        with torch.no_grad():
            hidden = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            ours = logit_map(inner.get_output_embeddings()(hidden).float())
            theirs = inner.forward(input_ids=ids, use_cache=False).logits.float()
    except (AttributeError, TypeError):
        return False
    finally:
        inner.train(was_training)
    scale = theirs.abs().max().clamp(min=1e-6)
    return bool(((ours - theirs).abs().max() / scale) < 1e-2)


def _logit_map(config: Any) -> LogitMap:
    """Gemma 2 caps its logits, Cohere scales them, Granite divides them; the names are those of their configs."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return LogitMap(scale, getattr(config, "final_logit_softcapping", None))


def chunks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK_POSITIONS, length)) for start in range(0, length, CHUNK_POSITIONS))


def _num_correct(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).sum()
