"""Truncate samples and prompts to `--max_length`, and count the loss."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmtune.errors import TemplateError
from llmtune.types import IGNORE_INDEX, Encoded, TruncationStrategy

__all__ = ["EncodedRow", "cut_prompt", "keep"]


@dataclass(slots=True)
class EncodedRow:
    """Samples of one row. `problem`: why it has none."""

    samples: list[Encoded] = field(default_factory=list)
    num_truncated: int = 0
    num_cut_tokens: int = 0
    num_cut_trainable: int = 0
    num_deleted: int = 0
    num_untrainable: int = 0
    num_plain: int = 0
    num_cut_images: int = 0
    problem: str | None = None


def keep(
    encoded: Encoded, row: EncodedRow, limit: int | None, strategy: TruncationStrategy, *, image_token: int | None
) -> None:
    """Add a sample to its row, truncated to the limit, or count why it is skipped.

    Args:
        limit: Tokens; None: no limit. image_token: Id of image positions, for vision models.
    """
    num_tokens, num_trainable = len(encoded.input_ids), encoded.num_trainable
    if limit is not None and num_tokens > limit:
        if strategy == "delete":
            row.num_deleted += 1
            return
        kept = slice(-limit, None) if strategy == "left" else slice(limit)
        if _cuts_images(encoded, kept, image_token):
            row.num_cut_images += 1
            return
        weights = None if encoded.weights is None else encoded.weights[kept]
        encoded = replace(encoded, input_ids=encoded.input_ids[kept], labels=encoded.labels[kept], weights=weights)
        encoded.labels[0] = IGNORE_INDEX
        row.num_truncated += 1
        row.num_cut_tokens += num_tokens - len(encoded.input_ids)
        row.num_cut_trainable += num_trainable - encoded.num_trainable
    if encoded.num_trainable == 0:
        row.num_untrainable += 1
    else:
        row.samples.append(encoded)


def cut_prompt(prompt: Encoded, limit: int | None, *, image_token: int | None) -> Encoded:
    """Return the end of a prompt that fits the limit.

    Raises:
        TemplateError: Truncation would cut an image.
    """
    if not limit or len(prompt.input_ids) <= limit:
        return prompt
    if _cuts_images(prompt, slice(-limit, None), image_token):
        size = f"{len(prompt.input_ids):,} tokens, images included"
        raise TemplateError(f"A prompt has {size}; --max_length is {limit:,}. Increase it, or set it to -1.")
    return replace(prompt, input_ids=prompt.input_ids[-limit:])


def _cuts_images(encoded: Encoded, kept: slice, image_token: int | None) -> bool:
    if image_token is None or not encoded.images:
        return False
    return encoded.input_ids[kept].count(image_token) != encoded.input_ids.count(image_token)
