"""`--padding_free auto`: batches without padding wherever the loaded model separates their samples without a mask."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from llmtune.arguments.stage import StageArguments
from llmtune.distributed.collectives import any_rank
from llmtune.models.packed_attention import check_isolation, takes_one_sequence, why_not_apart
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.run.log import Decisions
from llmtune.samples.prepare import Prepared
from llmtune.training.attention import active_attention
from llmtune.utils.logging import get_logger

ArgumentsT = TypeVar("ArgumentsT", bound=StageArguments)


def settle_padding(args: ArgumentsT, samples: Prepared, model: Any, decisions: Decisions) -> ArgumentsT:
    """Return the arguments with `--padding_free auto` resolved, and note which way was taken and why. Collective.

    Raises:
        ModelError: A flag asks for packed sequences, and the model does not separate them.
    """
    if args.sequence_parallel_size > 1:
        return args  # see share_sequences
    if args.packing or args.padding_free != "auto":
        if not has_sharded_weights(model):
            check_packed(args, samples, model)
        return args
    reason = "images have a place in their row" if samples.template.media is not None else args.why_padded()
    if not reason:
        reason = _why_padded(samples, model)
        if any_rank(bool(reason)):  # ranks have to agree
            reason = reason or "another process cannot leave it out"
    settled = copy.copy(args)
    settled.padding_free = "false" if reason else "true"
    if args.why_padded() != "batches hold one sample":
        value = "kept" if reason else "none, each batch is one sequence"
        decisions.choose("Padding", value, reason or f"{active_attention(model)} attention separates its samples")
    return settled


def _why_padded(samples: Prepared, model: Any) -> str:
    if has_sharded_weights(model):
        return "the weights are sharded, so that the model cannot be tried"
    if not takes_one_sequence(model):
        return f"{active_attention(model)} attention would need a mask over the whole batch"
    return why_not_apart(model, longest=longest_sample(samples))


def check_packed(args: StageArguments, samples: Prepared, model: Any) -> None:
    """Check that packed sequences are attended to separately; warn of what packing changes.

    Raises:
        ModelError: They are not.
    """
    if not (args.packing or args.padding_free == "true"):
        return
    check_isolation(model, "--packing" if args.packing else "--padding_free", longest=longest_sample(samples))
    if args.neftune_noise_alpha:
        text = "NEFTune's noise shrinks with the sequence length, which packing increases: raise %s."
        get_logger().warning(text, "--neftune_noise_alpha")


def longest_sample(samples: Prepared) -> int:
    """Tokens of the longest sample, for training or validation."""
    stores = [store for store in (samples.train_tokens, samples.validation_tokens) if store is not None]
    return max(int(store.lengths.max()) for store in stores)
