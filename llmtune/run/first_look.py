"""The training data, logged before the model is loaded."""

from __future__ import annotations

from llmtune.arguments.stage import StageArguments
from llmtune.run.log import Decisions
from llmtune.samples.packing import packs_text
from llmtune.samples.prepare import Prepared
from llmtune.utils.logging import get_logger

__all__ = ["log_data"]

SHOWN_TOKENS = 400


def log_data(prepared: Prepared, args: StageArguments, decisions: Decisions) -> None:
    """Note the size of the data, and log the first sample with its loss mask."""
    from llmtune.templates.mask_view import to_ansi, token_views, with_short_images

    log = get_logger()
    tokens = prepared.train_tokens
    report = tokens.report
    lengths = tokens.lengths
    share = report.num_trainable / max(report.num_tokens, 1)
    decisions.fact(
        "Data",
        f"{len(tokens):,} samples, {report.num_tokens:,} tokens, {report.num_trainable:,} trainable ({share:.1%}); "
        f"length {lengths.min():,}-{lengths.max():,} tokens, mean {lengths.mean():.0f}",
    )
    count = 0 if prepared.validation_tokens is None else len(prepared.validation_tokens)
    decisions.fact("Validation", f"{count:,} sample{'' if count == 1 else 's'}" if count else "none")
    if packs := packs_text(prepared.train_set):
        decisions.fact("Packs", packs)
    if packs := packs_text(prepared.validation_set):
        decisions.facts["Validation"] += f" in {packs}"
    if prepared.validation_tokens is None and args.predict_with_generate:
        log.warning("--predict_with_generate has no effect in this run: there are no validation rows.")
    first = tokens[0]
    views = token_views(prepared.tokenizer, first["input_ids"].tolist(), first["labels"].tolist())
    if prepared.template.images is not None:
        views = with_short_images(views, prepared.template.images.token_id)
    log.info("First sample (tokens in ⟦⟧ contribute to the loss):\n%s", to_ansi(views[:SHOWN_TOKENS], colour=False))
