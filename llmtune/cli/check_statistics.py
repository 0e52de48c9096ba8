"""The training data of a run in numbers, as `check` shows them."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from llmtune.arguments.stage import StageArguments
from llmtune.distributed.launch import planned_processes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmtune.samples.prepare import Prepared


def statistics_of(prepared: Prepared, args: StageArguments) -> dict[str, str]:
    from llmtune.run.log import documents_text, unit_of
    from llmtune.samples.blocks import blocks_text
    from llmtune.samples.encode_report import comparisons_text
    from llmtune.samples.packing import packs_text
    from llmtune.samples.prepare import steps_per_epoch, total_steps
    from llmtune.samples.streaming import StreamedSamples

    if args.KIND == "prompts":
        return _of_prompts(prepared, args)
    tokens = prepared.train_tokens
    report = tokens.report
    items = prepared.train_set
    num_items = len(tokens if isinstance(items, StreamedSamples) else items)
    processes = planned_processes(args.nproc, os.environ)
    counted = processes or 1
    many = f" x {counted} processes" if counted > 1 else "" if processes else " per GPU; steps as for one GPU"
    steps = {
        "steps per epoch": f"{steps_per_epoch(num_items, args, counted):,}",
        "total steps": f"{total_steps(num_items, args, counted):,}",
    }
    if args.streaming:
        steps = {"streaming": "statistics of the first rows", "total steps": f"{args.max_steps:,}"}
    validation = prepared.validation_tokens
    return {
        "model": str(args.model_type),
        "template": str(args.template_type),
        "rows": f"{report.num_rows:,}",
        "samples": f"{report.num_samples:,}",
        "validation samples": f"{len(validation):,}" if validation is not None else "none",
        "tokens": f"{report.num_tokens:,}",
        "trainable tokens": f"{report.num_trainable:,} ({report.num_trainable / max(report.num_tokens, 1):.1%})",
        "tokens per sample": _percentiles(prepared.lengths),
        "samples truncated": f"{report.num_truncated:,}",
        "samples skipped": f"{report.num_deleted + report.num_cut_images:,} too long, "
        f"{report.num_untrainable:,} without trainable tokens",
        "rows skipped": f"{report.num_problems:,} that the template cannot express",
        "rows split": f"{report.num_split_rows:,} into one sample per assistant turn",
        "control tokens": f"{report.num_plain:,} contents that spell one, encoded as plain text",
        **({"comparisons": comparisons} if (comparisons := comparisons_text(report)) else {}),
        **({"documents": documents} if (documents := documents_text(report)) else {}),
        **({"packs": packs_text(prepared.train_set)} if args.packing else {}),
        **({"blocks": blocks} if (blocks := blocks_text(prepared.train_set)) else {}),
        f"{unit_of(args)} per step": f"{args.step_size(counted):,}"
        f" ({args.batch_size} x {args.gradient_accumulation_steps}{many})",
        **steps,
    }


def _of_prompts(prepared: Prepared, args: StageArguments) -> dict[str, str]:
    online: Any = args
    tokens, report = prepared.train_tokens, prepared.train_tokens.report
    counted = planned_processes(args.nproc, os.environ) or 1
    count = len(prepared.validation_tokens) if prepared.validation_tokens is not None else 0
    steps = -(-online.num_places(len(tokens), counted) // args.step_size(counted))
    return {
        "model": str(args.model_type),
        "template": str(args.template_type),
        "rows": f"{report.num_rows:,}",
        "prompts": f"{len(tokens):,}, validation {count:,}",
        "tokens per prompt": _percentiles(tokens.lengths),
        "prompts truncated": f"{report.num_truncated:,}, {report.num_turns_cut:,} turns",
        "prompts skipped": f"{report.num_deleted:,} too long, {report.num_problems:,} that the template cannot express",
        "responses per step": f"{args.step_size(counted):,}, {online.num_generations} for each prompt",
        "prompts sampled at once": f"{online.prompts_per_batch(counted):,}",
        "steps per epoch": f"{steps:,}",
        "total steps": f"{args.max_steps if args.max_steps > 0 else math.ceil(steps * args.num_train_epochs):,}",
    }


def _percentiles(lengths: NDArray[np.int64]) -> str:
    import numpy as np

    shares = (0, 5, 25, 50, 75, 95, 99, 100)
    values = np.percentile(lengths, shares).astype(int)
    return ", ".join(f"{share} %: {value:,}" for share, value in zip(shares, values, strict=True))
