"""`--sequence_parallel_size`: the processes of a group share the sequences of their batches."""

from __future__ import annotations

from typing import Any

from llmtune.arguments.stage import StageArguments
from llmtune.errors import ModelError
from llmtune.models.heads import inner_model
from llmtune.models.sequence_parallel import GROUP, SequenceGroup, share_attention, why_not_shared_out
from llmtune.models.supervised_loss import has_sharded_weights
from llmtune.run.log import Decisions
from llmtune.samples.prepare import Prepared
from llmtune.training.attention import active_attention
from llmtune.training.padding import longest_sample


def share_sequences(args: StageArguments, samples: Prepared, model: Any, decisions: Decisions) -> None:
    """Let groups of processes share the sequences of a model, if asked to. Collective.

    Raises:
        ModelError: The model cannot be shared out.
    """
    if args.sequence_parallel_size == 1:
        return
    if reason := share_if_possible(args, samples, model):
        raise _refusal(reason)
    text = f"{args.sequence_parallel_size} processes share each batch, a part of its tokens and of the heads each"
    decisions.fact("Sequence parallelism", text)


def share_if_possible(args: StageArguments, samples: Prepared, model: Any) -> str:
    """Let groups of processes share the sequences of a model; return why it cannot be, "" where it is. Collective."""
    if samples.template.media is not None:
        return "images have a place in their row"
    group = SequenceGroup.of_ranks(args.sequence_parallel_size)
    share_attention(active_attention(model))
    if not has_sharded_weights(model):  # else it is tried when they can be gathered
        reason = why_not_shared_out(model, group, longest=longest_sample(samples))
        if reason:
            return reason
    setattr(inner_model(model), GROUP, group)
    return ""


def check_shared_out(model: Any, group: SequenceGroup, samples: Prepared) -> None:
    """Raise ModelError unless a model computes the same with its sequences shared out. Collective."""
    if reason := why_not_shared_out(model, group, longest=longest_sample(samples)):
        raise _refusal(reason)


def _refusal(reason: str) -> ModelError:
    return ModelError(
        f"--sequence_parallel_size does not work with this model: {reason}. Remove it; --gradient_checkpointing full "
        "and --fsdp true save memory too."
    )
