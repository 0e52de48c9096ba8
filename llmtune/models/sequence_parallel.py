"""Sequence parallelism: the processes of a group compute the same batch, each a part of its tokens (Ulysses).

Everything but attention works on single tokens, so that each process holds the activations of its own alone. Around
attention, parts of the sequence are exchanged for parts of the heads: each process attends with its share of the heads
to the whole sequence, and what comes out is exchanged back. The loss is that of the whole batch, on every process.

The method is that of DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509). accelerate's own needs DeepSpeed's
engine, and takes rows of equal length without packing.

Shapes: N processes; T tokens of a batch, a row of packed sequences; H heads of D numbers; K trainable tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from llmtune.errors import one_line
from llmtune.models.heads import inner_model, outputs_per_token
from llmtune.models.packed_attention import alike, half_on_kernels, rotation_limit, segments, takes_one_sequence

GROUP = "sequence_group"
"""Argument of attention, and attribute of a model, with the group that shares out its sequences."""


@dataclass(frozen=True, eq=False)
class SequenceGroup:
    """The processes that share a batch.

    Attributes:
        size: How many.
        place: Of this process among them: it has the part of the tokens of that number.
        processes: The process group.
    """

    size: int
    place: int
    processes: Any

    @classmethod
    def of_ranks(cls, size: int) -> SequenceGroup:
        """Divide all ranks into groups of neighbours, and return that of this rank. Collective."""
        number, place = divmod(dist.get_rank(), size)
        starts = range(0, dist.get_world_size(), size)
        groups = [dist.new_group(list(range(start, start + size))) for start in starts]
        return cls(size, place, groups[number])

    def part(self, values: Tensor, filler: int) -> Tensor:
        """Return the part of a [1, T] tensor that this process computes, of T filled up to a multiple of N."""
        length = -(-values.shape[1] // self.size)
        filled = functional.pad(values, (0, length * self.size - values.shape[1]), value=filler)
        return filled[:, self.place * length : (self.place + 1) * length]

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch with the tokens of this process, and bounds of sequences that hold for all of them.

        Args:
            batch: `input_ids` and `position_ids`, [1, T], and bounds as `packed_attention` gives them.
        """
        if batch["input_ids"].shape[0] != 1 or batch.get("cu_seq_lens_q") is None:
            raise ValueError("sequence parallelism takes a batch as one row of packed sequences, with their bounds")
        found = dict(batch) | {GROUP: self}
        found |= {name: self.part(batch[name], 0) for name in ("input_ids", "position_ids")}
        if filling := -batch["input_ids"].shape[1] % self.size:
            found |= _with_filler(batch, filling)
        return found

    def total(self, own: Tensor) -> Tensor:
        """Return the sum of a scalar over the group, with gradient."""
        return self.whole(own[None], 0, 1)[0]

    def whole(self, own: Tensor, start: int, size: int) -> Tensor:
        """Return a vector of which each process has a part, with gradient.

        Args:
            own: That of this process, from `start`.
            size: Numbers of the whole.
        """
        found: Tensor = _whole(own, start, size, self)
        return found

    def to_heads(self, part: Tensor) -> Tensor:
        """Exchange a part of the tokens for a part of the heads: [1, H, T / N, D] to [1, H / N, T, D]."""
        _, heads, length, width = part.shape
        found: Tensor = _exchange(part.reshape(self.size, heads // self.size, length, width), self)
        return found.transpose(0, 1).reshape(1, heads // self.size, self.size * length, width)

    def to_tokens(self, part: Tensor) -> Tensor:
        """Exchange a part of the heads for a part of the tokens: [1, T, H / N, D] to [1, T / N, H, D]."""
        _, length, heads, width = part.shape
        found: Tensor = _exchange(part.reshape(self.size, length // self.size, heads, width), self)
        return found.transpose(0, 1).reshape(1, length // self.size, self.size * heads, width)


def _with_filler(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Bounds with one more sequence of `size` tokens, which reads itself alone."""
    found = {}
    for side in ("q", "k"):
        edges = batch[f"cu_seq_lens_{side}"]
        found[f"cu_seq_lens_{side}"] = torch.cat([edges, edges[-1:] + size])
        found[f"max_length_{side}"] = max(batch[f"max_length_{side}"], size)
    if (index := batch.get("key_index")) is not None:
        length = batch["input_ids"].shape[1]
        found["key_index"] = torch.cat([index, torch.arange(length, length + size, device=index.device)])
    return found


class _Exchange(torch.autograd.Function):
    """Each process gets the part of its own number from all: [N, ...] to [N, ...]. It is its own inverse."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        found = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(found, parts.contiguous(), group=group.processes)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


class _Whole(torch.autograd.Function):
    """A vector from its parts. All processes go on with the same numbers, so that their gradients add up to N times."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, size: int, group: SequenceGroup) -> Tensor:
        ctx.place, ctx.group = slice(start, start + len(own)), group
        found = own.new_zeros(size)
        found[ctx.place] += own
        dist.all_reduce(found, group=group.processes)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad[ctx.place] * ctx.group.size, None, None, None


_exchange: Callable[..., Any] = _Exchange.apply
_whole: Callable[..., Any] = _Whole.apply


# Attention


def share_attention(name: str) -> None:
    """Let an attention of transformers take batches that are shared out. A second call does nothing.

    What a class computes by itself (`eager`) cannot, which `why_not_shared_out` says.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = ALL_ATTENTION_FUNCTIONS.get(name)
    if own is not None and getattr(own, "func", None) is not _shared_attention:
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_shared_attention, own))


def _shared_attention(
    own: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    sequence_group: SequenceGroup | None = None,
    **options: Any,
) -> Any:
    """The attention interface of transformers: [B, H, T, D] to [B, T, H, D]."""
    if sequence_group is None:
        return own(module, query, key, value, attention_mask, *args, **options)
    repeats = key_repeats(query.shape[1], key.shape[1], sequence_group.size)
    key, value = (part.repeat_interleave(repeats, 1) if repeats > 1 else part for part in (key, value))
    parts = [sequence_group.to_heads(part) for part in (query, key, value)]
    out, *others = own(module, *parts, attention_mask, *args, **options)
    return sequence_group.to_tokens(out), *others


def key_repeats(heads: int, key_heads: int, size: int) -> int:
    """How often each key head is repeated, so that the processes get as many and the right ones.

    Raises:
        ValueError: The heads cannot be divided.
    """
    repeats = math.lcm(key_heads, size) // key_heads
    if heads % size or heads % (key_heads * repeats):
        fitting = [count for count in range(2, heads + 1) if not (heads % count or heads % math.lcm(key_heads, count))]
        raise ValueError(
            f"its {heads} attention heads, with {key_heads} of keys, cannot be divided among {size} processes; "
            f"{' or '.join(map(str, fitting)) or 'no number above 1'} could share them"
        )
    return repeats


# Whether a model can be shared out


def why_not_shared_out(model: Any, group: SequenceGroup, *, longest: int = 0) -> str:
    """Why the processes of a group cannot share a model's sequences; "" where they can. Collective.

    Some classes mix tokens by more than attention (Mamba, linear attention), and some attend without transformers'
    interface.
    """
    inner = inner_model(model)
    name = type(inner).__name__
    limit = rotation_limit(inner.config)
    if limit is not None and longest > limit:
        return f"{name} rescales RoPE of a whole batch once its longest sequence exceeds {limit:,} tokens"
    if not takes_one_sequence(model):
        return f"its attention ({inner.config._attn_implementation}) does not take the bounds of packed sequences"
    was_training = model.training
    model.eval()
    try:
        return "" if _equals_whole(model, group) else f"{name} mixes tokens by more than its attention"
    except (TypeError, ValueError, RuntimeError) as err:
        return one_line(err, 200)
    finally:
        model.train(was_training)


@torch.no_grad()
def _equals_whole(model: Any, group: SequenceGroup) -> bool:
    sizes = (8 * group.size, 7 * group.size + 1)
    positions = torch.cat([torch.arange(size, device=model.device) for size in sizes])[None]
    batch = {"input_ids": torch.arange(1, 1 + sum(sizes), device=model.device)[None] % 97, "position_ids": positions}
    batch |= segments(positions)
    with half_on_kernels(model):
        whole = outputs_per_token(model, **batch, use_cache=False)
        own = outputs_per_token(model, **group.inputs(batch), use_cache=False)
    expected = whole[:, group.place * own.shape[1] :][:, : own.shape[1]]
    differs = torch.tensor(float(not alike(own[:, : expected.shape[1]], expected)), device=whole.device)
    dist.all_reduce(differs, group=group.processes)
    return not differs
