"""Packed batches: the collator of a run, and the check that packed sequences are attended to separately."""

from __future__ import annotations

from typing import Any

from llmtune.arguments.stage import StageArguments
from llmtune.models.packed_attention import check_isolation, takes_one_sequence
from llmtune.samples.collate import PackingCollator, PaddingCollator
from llmtune.samples.prepare import Prepared
from llmtune.utils.logging import get_logger


def check_packed(args: StageArguments, samples: Prepared, model: Any) -> None:
    """Check that packed sequences are attended to separately; warn of what packing changes.

    Raises:
        ModelError: They are not.
    """
    if not (args.packing or args.padding_free):
        return
    stores = [store for store in (samples.train_tokens, samples.validation_tokens) if store is not None]
    longest = max(int(store.lengths.max()) for store in stores)
    check_isolation(model, "--packing" if args.packing else "--padding_free", longest=longest)
    if args.neftune_noise_alpha:
        text = "NEFTune's noise shrinks with the sequence length, which packing increases: raise %s."
        get_logger().warning(text, "--neftune_noise_alpha")


def collator_of(args: StageArguments, samples: Prepared, model: Any) -> PackingCollator | PaddingCollator:
    """The collator for rows, padded, or for packed sequences as this model's attention takes them."""
    padding = samples.tokenizer.pad_token_id
    if not (args.packing or args.padding_free):
        return PaddingCollator(padding, samples.template.media)
    one_sequence = takes_one_sequence(model)
    return PackingCollator(padding, flat=args.padding_free or one_sequence, with_segments=one_sequence)
