"""`llmtune check --template`: compares llmtune's template with the tokenizer's chat template, token by token."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from llmtune.errors import one_line

if TYPE_CHECKING:
    from llmtune.arguments.sft import SftArguments
    from llmtune.templates.parity import Difference
    from llmtune.types import Conversation

BEFORE, AFTER = 4, 6


def check_template(args: SftArguments) -> int:
    """Print one line per probe, and the first difference in full. Return 1 if any differs."""
    from llmtune.arguments.checks import parse_chat_template_kwargs
    from llmtune.templates.lookup import get_template
    from llmtune.templates.own_render import PROBES
    from llmtune.utils.logging import quiet_libraries

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
    from llmtune.errors import TemplateError
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
