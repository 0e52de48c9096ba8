"""Supervised loss at trainable positions only: the head skips positions whose label is IGNORE_INDEX.

The head is applied in chunks (`models.chunked_loss`), so that logits of the whole batch, [B, T, V], are never built, in
training or evaluation.

Shapes: B samples, T tokens, K trainable positions of a batch.
"""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils import ModelOutput

from llmtune.models.chunked_loss import LogitMap, supervised_cross_entropy, token_logps
from llmtune.models.sequence_parallel import GROUP, SequenceGroup
from llmtune.types import IGNORE_INDEX
from llmtune.utils.logging import get_logger

PROBE_LENGTH = 8
PLAIN = LogitMap()


@dataclass
class SupervisedLoss(ModelOutput):
    """Output of a model with the supervised loss, given labels.

    `token_logps`: with the argument of that name alone, the log-probability of each trainable token, [K], row by row;
    `entropies`, with `token_entropies` too, those of their distributions, [K]; `temperature` divides the logits.
    `loss`: the sum over trainable tokens, each times its weight, divided by `num_items_in_batch`, or by the sum of the
    weights, `total_weight`: their mean. `num_trainable`: K, which is that sum where all weigh 1. `num_correct`: how
    many of them are the most likely token; counted in evaluation only.
    """

    loss: Tensor | None = None
    token_logps: Tensor | None = None
    entropies: Tensor | None = None
    num_trainable: Tensor | None = None
    num_correct: Tensor | None = None
    total_weight: Tensor | None = None


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
        per_token = kwargs.pop("token_logps", False)
        wants_entropies = kwargs.pop("token_entropies", False)
        mapped = replace(logit_map, temperature=kwargs.pop("temperature", 1.0))
        kwargs["use_cache"] = False
        aims = _Aims.of(labels, bits, getattr(self, GROUP, None))
        if aims.group is not None:
            kwargs = aims.group.inputs(kwargs)
        if is_exact():
            # The decoder of a model that sees is its language part alone; the images enter around it.
            body = inner.base_model if "pixel_values" in kwargs else inner.get_decoder()
            states, head = body(*args, **kwargs).last_hidden_state, inner.get_output_embeddings()
        else:
            states, head = own_forward(*args, **kwargs).logits, None
        aims = aims.to(states.device)  # the model may lie on several devices
        targets, weights = aims.targets, aims.weights
        states = states[aims.trainable]
        if per_token:
            entropies = torch.zeros(len(targets), device=states.device) if wants_entropies else None
            if head is None:  # the model's own logits are mapped already
                mapped = replace(PLAIN, temperature=mapped.temperature)
            logps = (
                head(states, targets, mapped, per_token=True, entropies=entropies)
                if type(head) is nn.Linear
                else token_logps(states, head or nn.Identity(), targets, mapped, entropies)
            )
            return SupervisedLoss(
                token_logps=aims.whole(logps), entropies=None if entropies is None else aims.whole(entropies)
            )
        if head is None:
            total, correct = supervised_cross_entropy(states, nn.Identity(), targets, weights=weights)
        elif type(head) is nn.Linear:
            total, correct = head(states, targets, logit_map, weights)
        else:
            total, correct = supervised_cross_entropy(states, head, targets, logit_map, weights)
        total, correct = aims.total(total), aims.total(correct)
        count = torch.tensor(aims.number, device=total.device)
        weight = count if aims.weight is None else aims.weight
        divisor: Any = max(aims.number, 1) if aims.weight is None or not aims.number else weight
        if num_items is not None:
            divisor = torch.as_tensor(num_items, device=total.device)
        return SupervisedLoss(loss=total / divisor, num_trainable=count, num_correct=correct, total_weight=weight)

    # upstream: transformers 5.23.0 transformers/generation/utils.py: checks the arguments of generate by it
    forward.__signature__ = inspect.signature(type(inner).forward)  # type: ignore[attr-defined]
    # upstream: transformers 5.23.0 transformers/models/llama/modeling_llama.py: its loss takes all logits, ours states
    inner.forward = types.MethodType(forward, inner)


@dataclass(frozen=True)
class _Aims:
    """Trainable positions of a batch, or of the part of it that this process computes.

    Attributes:
        trainable: Positions whose next token has a label, [B, T].
        targets, weights: Of these positions, in their order; weights in fp32, None where all are 1.
        start, number: Trainable positions before this part; of the whole batch, K.
        weight: Sum of the weights of the whole batch; None where all are 1.
        group: That shares the batch out; None without.
    """

    trainable: Tensor
    targets: Tensor
    weights: Tensor | None
    start: int
    number: int
    weight: Tensor | None
    group: SequenceGroup | None = None

    @classmethod
    def of(cls, labels: Tensor, bits: Tensor | None, group: SequenceGroup | None) -> _Aims:
        """Args: `bits`: the weights of the tokens, as `samples.collate` has them."""
        following = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        weights = None if bits is None else functional.pad(bits[:, 1:], (0, 1)).view(torch.float32)
        trainable = following != IGNORE_INDEX
        whole = cls(
            trainable,
            following[trainable],
            None if weights is None else weights[trainable],
            start=0,
            number=0,
            weight=None,
        )
        number = len(whole.targets)
        weight = None if whole.weights is None else whole.weights.sum()
        if group is None:
            return replace(whole, number=number, weight=weight)
        own = group.part(trainable, False)
        before = int(trainable[:, : group.place * own.shape[1]].sum())
        part = slice(before, before + int(own.sum()))
        weights = None if whole.weights is None else whole.weights[part]
        return cls(own, whole.targets[part], weights, before, number, weight, group)

    def to(self, device: torch.device) -> _Aims:
        moved = {
            name: value.to(device)
            for name in ("trainable", "targets", "weights", "weight")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def whole(self, values: Tensor) -> Tensor:
        """The numbers of all trainable positions, of those of this part."""
        return values if self.group is None else self.group.whole(values, self.start, self.number)

    def total(self, value: Tensor) -> Tensor:
        return value if self.group is None else self.group.total(value)


def has_sharded_weights(model: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the weights: they are gathered within a step only."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _head_forward(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor | None = None,
    logit_map: LogitMap = PLAIN,
    weights: Tensor | None = None,
    per_token: bool = False,
    entropies: Tensor | None = None,
) -> Any:
    """The head's own forward or, with targets, the loss, or their log-probabilities.

    Called as a module, since sharding frameworks gather weights around such calls.
    """
    if targets is None:
        return functional.linear(hidden, head.weight, head.bias)
    if per_token:
        return token_logps(hidden, head, targets, logit_map, entropies)
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
