"""The prompts whose responses a run writes down at each evaluation."""

from __future__ import annotations

from pathlib import Path

from llmtune.arguments.stage import StageArguments
from llmtune.data.canonical import conversation_of
from llmtune.data.files import BadLine, has_data_extension
from llmtune.data.formats import to_conversation
from llmtune.data.readers import read_rows
from llmtune.errors import DataError, RowError, TemplateError, UsageError
from llmtune.samples.prepare import Prepared
from llmtune.types import Conversation, Message

NUM_WATCHED = 4
MOST_WATCHED = 64
NONE = "none"


def watched_rows(args: StageArguments, samples: Prepared) -> list[Conversation]:
    """Return the prompts of `--watch_prompts`, each with its reference response where it has one.

    Raises:
        UsageError: A file that is missing, or has no prompts. TemplateError: The template cannot express a prompt.
    """
    if args.SCORES or args.watch_prompts == [NONE]:
        return []
    if not args.watch_prompts:
        return _held_out(samples)
    rows = [row for text in args.watch_prompts for row in _given(text)]
    if len(rows) > MOST_WATCHED:
        raise UsageError(
            f"--watch_prompts has {len(rows):,} prompts, and each evaluation waits for their responses: give up to "
            f"{MOST_WATCHED}."
        )
    for row in rows:
        samples.template.prompts([row])
    return rows


def _held_out(samples: Prepared) -> list[Conversation]:
    """The first validation rows that have a prompt; bad ones were reported as they were encoded."""
    found: list[Conversation] = []
    for record in samples.validation if samples.validation is not None else ():
        row = conversation_of(record)
        if row.turns and row.turns[0].role == "user" and _can_be_asked(samples, row):
            found.append(row)
        if len(found) == NUM_WATCHED:
            break
    return found


def _can_be_asked(samples: Prepared, row: Conversation) -> bool:
    try:
        samples.template.prompts([row])
    except (TemplateError, DataError):
        return False
    return True


def _given(text: str) -> list[Conversation]:
    path = Path(text).expanduser()
    if not has_data_extension(path):
        return [Conversation((Message("user", text),))]
    if not path.is_file():
        raise UsageError(f"--watch_prompts {text}: there is no such file.")
    found = []
    for location, row in read_rows(path):
        if isinstance(row, BadLine):
            raise UsageError(f"--watch_prompts {text}, {location}: {row.reason}")
        try:
            is_text = set(row) == {"text"}  # a line of a .txt file
            asked = Conversation((Message("user", str(row["text"])),)) if is_text else None
            found.append(asked or to_conversation(row, need_answer=False))
        except RowError as err:
            raise UsageError(f"--watch_prompts {text}, {location}: {err}") from err
    return found
