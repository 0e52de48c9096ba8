"""`llmtune check`: the training data of a run, tokenized and masked, without loading weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtune.arguments.parser import parse
from llmtune.arguments.stage import StageArguments
from llmtune.arguments.stages import stage_arguments
from llmtune.cli.check_facts import CheckedData, check_data
from llmtune.cli.stages import add_flags, take_stage
from llmtune.errors import TemplateError, one_line
from llmtune.templates.mask_view import HtmlRow, to_ansi, to_html
from llmtune.utils.files import write_text
from llmtune.utils.logging import quiet_libraries

if TYPE_CHECKING:
    from llmtune.templates.parity import Difference
    from llmtune.types import Conversation


SUMMARY = """
Show the training data of `llmtune sft` with the same flags: the first samples as tokens, with those that
contribute to the loss marked; token statistics; skipped rows and why; steps. Loads no weights.
  llmtune check --model_type llmtune-tiny --dataset my.jsonl --html check.html
  llmtune check --model_id_or_path FOLDER --template      (compares with the tokenizer's chat template, token by token)
  llmtune check dpo ...                                   another stage
"""


@dataclass(kw_only=True)
class CheckFlags:
    """Check."""

    rows: int = 3
    """Samples to show."""
    html: str | None = None
    """HTML file to write as well."""
    json: bool = False
    """Print JSON: statistics, samples token by token, skipped rows, lengths."""


ARGUMENTS = add_flags(CheckFlags, stage_arguments("sft"))


def run(argv: Sequence[str]) -> int:
    stage, argv = take_stage(argv)
    argv, only_template = take_template_switch(argv)
    args: Any = parse(add_flags(CheckFlags, stage_arguments(stage or "sft")), argv, command="check", summary=SUMMARY)
    if only_template:
        return check_template(args)
    data = check_data(args, args.rows)
    if args.html is not None:
        _write_html(args, data)
    if args.json:
        sys.stdout.write(json.dumps(data.to_json(), ensure_ascii=False) + "\n")
        return 0
    for one in data.samples:
        title = f"--- sample {one.index}, of row {one.row}: {one.length} tokens "
        sys.stdout.write(f"{title:-<100}\n")
        for name, part in one.parts:
            head = f"[{name}, {len(part)} tokens]\n" if name else ""
            sys.stdout.write(f"{head}{to_ansi(part, colour=sys.stdout.isatty())}\n")
    width = max(map(len, data.statistics))
    sys.stdout.write(f"{'--- statistics ':-<100}\n")
    sys.stdout.writelines(f"{name:<{width}}  {value}\n" for name, value in data.statistics.items())
    sys.stdout.writelines(f"Note: {line}\n" for line in data.notes)
    if args.html is not None:
        sys.stdout.write(f"Written to {args.html}\n")
    return 0


def _write_html(args: Any, data: CheckedData) -> None:
    title = f"llmtune check: {args.model_type}, {', '.join(args.dataset)}"
    rows = [HtmlRow(one.rendered, one.views) for one in data.samples]
    write_text(Path(args.html), to_html(title, data.statistics, rows))


def take_template_switch(argv: list[str]) -> tuple[list[str], bool]:
    """Split off `--template`: alone it asks for the comparison; with a key, it is another tool's --template_type."""
    for index, word in enumerate(argv):
        value = argv[index + 1] if index + 1 < len(argv) else "--"
        if word == "--template" and (value.startswith("--") or value == "true"):
            return argv[:index] + argv[index + (2 if value == "true" else 1) :], True
    return argv, False


# --template: llmtune's template beside the tokenizer's chat template, token by token


BEFORE, AFTER = 4, 6


def check_template(args: StageArguments) -> int:
    """Print one line per probe, and the first difference in full. Return 1 if any differs."""
    from llmtune.arguments.checks import parse_chat_template_kwargs
    from llmtune.templates.lookup import get_template
    from llmtune.templates.own_render import PROBES

    quiet_libraries()
    assert args.template_type is not None
    tokenizer = args.load_tokenizer()
    if not tokenizer.chat_template:
        sys.stdout.write(f"The tokenizer has no chat template to compare {args.template_type!r} with.\n")
        return 0
    template = get_template(
        args.template_type,
        tokenizer,
        system=args.system,
        loss_on=args.loss_on,
        template_kwargs=parse_chat_template_kwargs(args.chat_template_kwargs),
        media=args.media_reader(tokenizer),
    )
    sys.stdout.write(f"Template {args.template_type!r} against the chat template of {tokenizer.name_or_path}\n")
    first: tuple[str, Difference] | None = None
    for name, conversation in PROBES.items():
        verdict, difference = _compare(template, conversation)
        sys.stdout.write(f"  {name:<38}{verdict}\n")
        if difference is not None and first is None:
            first = (name, difference)
    if first is not None:
        _show(first[0], first[1], tokenizer)
    return 0 if first is None else 1


def _compare(template: Any, conversation: Conversation) -> tuple[str, Difference | None]:
    from llmtune.templates.parity import UpstreamRefusal, prompt_difference, sample_difference

    try:
        found = prompt_difference(template, conversation) or sample_difference(template, conversation)
    except TemplateError as err:
        return f"refused: {err}", None
    except UpstreamRefusal as err:
        return f"refused by the tokenizer's template: {one_line(err, 80)}", None
    return ("equal", None) if found is None else (f"differs at token {found.at} of {found.what}", found)


def _show(name: str, difference: Difference, tokenizer: Any) -> None:
    """The tokens around the first difference, side by side."""
    write = sys.stdout.write
    write(f"\nThe first difference, {name}, {difference.what}:\n")
    write(f"  {'token':>6}  {'ours':<34}theirs\n")
    for index in range(max(difference.at - BEFORE, 0), difference.at + AFTER):
        cells = [_cell(ids, index, tokenizer) for ids in (difference.ours, difference.theirs)]
        if cells != ["", ""]:
            mark = "->" if index == difference.at else ""
            write(f"{mark:<2}{index:>6}  {cells[0]:<34}{cells[1]}\n")


def _cell(ids: list[int], index: int, tokenizer: Any) -> str:
    return f"{ids[index]:>6} {tokenizer.decode([ids[index]])!r}" if index < len(ids) else ""
