"""`llmtune check`: the training data of a run, tokenized and masked, without loading weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtune.arguments.parser import parse
from llmtune.arguments.sft import SftArguments
from llmtune.arguments.stage import StageArguments
from llmtune.distributed.launch import planned_processes

if TYPE_CHECKING:
    from llmtune.samples.prepare import Prepared
    from llmtune.samples.store import TokenStore

SUMMARY = """
Show the training data of `llmtune sft` with the same flags: the first samples as text and as tokens, with those that
contribute to the loss marked; token statistics; skipped rows and why; steps. Loads no weights.
  llmtune check --model_type llmtune-tiny --dataset my.jsonl --html check.html
  llmtune check --model_id_or_path FOLDER --template      (compares with the tokenizer's chat template, token by token)
"""


@dataclass(kw_only=True)
class CheckArguments(SftArguments):
    """Check."""

    rows: int = 3
    """Samples to show."""
    html: str | None = None
    """HTML file to write as well."""


ARGUMENTS = CheckArguments


def run(argv: Sequence[str]) -> int:
    argv, only_template = take_template_switch(list(argv))
    args = parse(CheckArguments, argv, command="check", summary=SUMMARY)
    if only_template:
        from llmtune.cli.check_template import check_template

        return check_template(args)
    from llmtune.run.resolved import Run
    from llmtune.run.resume import check_same_data
    from llmtune.samples.prepare import data_identity, note_positions, prepare
    from llmtune.templates.mask_view import HtmlRow, to_ansi, to_html, token_views, with_short_media
    from llmtune.utils.files import write_text
    from llmtune.utils.logging import quiet_libraries

    quiet_libraries()
    resolved = Run.resolve(args)
    run = resolved.args
    prepared = prepare(run)
    if resolved.resume is not None:
        check_same_data(resolved.resume, data_identity(prepared))
    note_positions(prepared, run)
    tokens = prepared.train_tokens
    statistics = _statistics(prepared, run)
    shown: list[HtmlRow] = []
    for index in range(min(args.rows, len(tokens))):
        sample = tokens[index]
        views = token_views(prepared.tokenizer, sample["input_ids"].tolist(), sample["labels"].tolist())
        title = f"--- sample {index}, of row {tokens.row_of(index)}: {len(views)} tokens "
        if prepared.template.media is not None:
            views = with_short_media(views, prepared.template.media_token_ids)
        shown.append(HtmlRow(_rendered(prepared, tokens.row_of(index)), views))
        sys.stdout.write(f"{title:-<100}\n{shown[-1].rendered}\n\n")
        sys.stdout.write(f"{to_ansi(views, colour=sys.stdout.isatty())}\n")
    width = max(map(len, statistics))
    sys.stdout.write(f"{'--- statistics ':-<100}\n")
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in statistics.items())
    if args.html is not None:
        title = f"llmtune check: {run.model_type}, {', '.join(run.dataset)}"
        write_text(Path(args.html), to_html(title, statistics, shown))
        sys.stdout.write(f"Written to {args.html}\n")
    return 0


def take_template_switch(argv: list[str]) -> tuple[list[str], bool]:
    """Split off `--template`: alone it asks for the comparison; with a key, it is another tool's --template_type."""
    for index, word in enumerate(argv):
        value = argv[index + 1] if index + 1 < len(argv) else "--"
        if word == "--template" and (value.startswith("--") or value == "true"):
            return argv[:index] + argv[index + (2 if value == "true" else 1) :], True
    return argv, False


def _rendered(prepared: Prepared, row: int) -> str:
    from llmtune.data.canonical import from_record

    return prepared.template.render(from_record(prepared.train[row]))


def _statistics(prepared: Prepared, args: StageArguments) -> dict[str, str]:
    from llmtune.samples.packing import packs_text
    from llmtune.samples.prepare import steps_per_epoch, total_steps
    from llmtune.samples.streaming import StreamedSamples

    tokens = prepared.train_tokens
    report = tokens.report
    items = prepared.train_set
    num_items = len(tokens if isinstance(items, StreamedSamples) else items)
    processes = planned_processes(args.nproc, os.environ)
    counted = processes or 1
    samples = args.batch_size * args.gradient_accumulation_steps * counted
    many = f" x {counted} processes" if counted > 1 else "" if processes else " per GPU; steps as for one GPU"
    steps = {
        "steps per epoch": f"{steps_per_epoch(num_items, args, counted):,}",
        "total steps": f"{total_steps(num_items, args, counted):,}",
    }
    if args.streaming:
        steps = {
            "streaming": "statistics of the first rows",
            "total steps": f"{args.max_steps:,}",
        }
    validation = prepared.validation_tokens
    return {
        "model": f"{args.model_type}",
        "template": f"{args.template_type}",
        "rows": f"{report.num_rows:,}",
        "samples": f"{report.num_samples:,}",
        "validation samples": f"{len(validation):,}" if validation is not None else "none",
        "tokens": f"{report.num_tokens:,}",
        "trainable tokens": f"{report.num_trainable:,} ({report.num_trainable / max(report.num_tokens, 1):.1%})",
        "tokens per sample": _percentiles(tokens),
        "samples truncated": f"{report.num_truncated:,}",
        "samples skipped": f"{report.num_deleted + report.num_cut_images:,} too long, "
        f"{report.num_untrainable:,} without trainable tokens",
        "rows skipped": f"{report.num_problems:,} that the template cannot express",
        "rows split": f"{report.num_split_rows:,} into one sample per assistant turn",
        "control tokens": f"{report.num_plain:,} contents that spell one, encoded as plain text",
        **({"packs": packs_text(prepared.train_set)} if args.packing else {}),
        f"{'packs' if args.packing else 'samples'} per step": f"{samples:,}"
        f" ({args.batch_size} x {args.gradient_accumulation_steps}{many})",
        **steps,
    }


def _percentiles(tokens: TokenStore) -> str:
    import numpy as np

    shares = (0, 5, 25, 50, 75, 95, 99, 100)
    values = np.percentile(tokens.lengths, shares).astype(int)
    return ", ".join(f"{share} %: {value:,}" for share, value in zip(shares, values, strict=True))
