"""The data as the model meets it, told before anything is spent on training."""

from __future__ import annotations

from llmtune.arguments.sft import SftArguments
from llmtune.samples.packing import packs_text
from llmtune.samples.prepare import Prepared
from llmtune.utils.logging import get_logger

__all__ = ["tell_data"]

SHOWN_TOKENS = 400


def tell_data(prepared: Prepared, args: SftArguments) -> None:
    """Say how much there is, and show the first sample."""
    from llmtune.templates.mask_view import to_ansi, token_views, with_short_images

    log = get_logger()
    tokens = prepared.train_tokens
    report = tokens.report
    lengths = tokens.lengths
    spread = f"{lengths.min()} to {lengths.max()} a sample, {lengths.mean():.0f} on average"
    log.info(f"{len(tokens):,} samples, {report.num_tokens:,} tokens ({report.num_trainable:,} learned), {spread}.")
    for name, items in (("Packs", prepared.train_set), ("Validation packs", prepared.validation_set)):
        if packs := packs_text(items):
            log.info(f"{name}: {packs}.")
    if prepared.validation_tokens is None and args.predict_with_generate:
        log.warning("--predict_with_generate has no effect in this run: there are no validation rows.")
    first = tokens[0]
    views = token_views(prepared.tokenizer, first["input_ids"].tolist(), first["labels"].tolist())
    if prepared.template.images is not None:
        views = with_short_images(views, prepared.template.images.token_id)
    log.info("The first sample, what is learned in brackets:\n%s", to_ansi(views[:SHOWN_TOKENS], colour=False))
