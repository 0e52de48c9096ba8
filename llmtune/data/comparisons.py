"""Convert any row of preference data into a Comparison: pairs, ranked lists, and single responses with a label.

Each response is read as the conversation that it makes with its prompt, by `formats.to_conversation`: all prompts that
a conversation can have are those of comparisons, too.

| source | columns |
| --- | --- |
| TRL, explicit prompt | `prompt, chosen, rejected`: texts or lists of messages |
| TRL, implicit prompt | `chosen, rejected`: whole conversations with a common beginning |
| HH-RLHF | `chosen, rejected`: one text each, turns after `Human:` and `Assistant:` |
| LLaMA-Factory | `instruction, input, history, system` or `conversations`, and `chosen, rejected` |
| ms-swift | `messages` with the chosen response, and `rejected_response` or `rejected_messages`; `margin` |
| MedicalGPT | `system, history, question, response_chosen, response_rejected` |
| NeMo-RL | `context`, and `completions`: `[{"rank": 0, "completion": [...]}, ...]` |
| KTO | a conversation with its response, and `label` or `kto_tag` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmtune.data.contents import Found
from llmtune.data.formats import to_conversation
from llmtune.data.shapes import EXTRAS, LABELS, LISTS, Recognised, Shape, present, question_and_answer, recognise
from llmtune.data.values import kind_of
from llmtune.errors import RowError
from llmtune.types import Answer, Comparison, Conversation, RowKind

CHOSEN = ("chosen", "response_chosen")
REJECTED = ("rejected", "response_rejected", "rejected_response")
RANKED = ("completions", "context")
TRUTHS = {"true": True, "false": False, "1": True, "0": False}
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
EXPECTED = "chosen and rejected, messages and rejected_response, or a response with a label (true or false)"


def to_comparison(row: Mapping[str, Any], found: Found | None = None) -> Comparison:
    """Convert a row of any known format into a checked comparison.

    Args:
        row: Not mutated.
        found: Collects what the report says about the row's messages.

    Raises:
        RowError: The row has no known format, lacks a side, has prompts that differ or responses that are equal or
            empty. The message holds the reason only.
    """
    found = Found() if found is None else found
    cells = present(row)
    chosen, rejected = _sides(cells)
    if all(cells.get(key) is not None for key in RANKED):
        made = _ranked(cells, found)
    elif rejected is not None:
        made = _pair(cells, chosen, rejected, found)
    elif chosen is not None:
        raise RowError(f"it has {chosen!r} and no rejected response: {', '.join(REJECTED)} are missing or null")
    else:
        made = _labelled(cells, found)
    _check(made)
    return made


def to_responses(row: Mapping[str, Any], found: Found | None = None) -> Comparison:
    """Convert any row with responses: a comparison, or a conversation as a prompt with its last response.

    Raises:
        RowError: As `to_comparison`, or the conversation has no response.
    """
    if compares(row):
        return to_comparison(row, found)
    return last_response(to_conversation(row, found=Found() if found is None else found))


def last_response(conversation: Conversation) -> Comparison:
    """Return a conversation as its prompt, and the response that ends it.

    Raises:
        RowError: It has no question, or no response to the last one.
    """
    if not conversation.turns or conversation.turns[-1].role != "assistant":
        raise RowError("it does not end with a response, which could be scored")
    prompt, (answer,) = _split([conversation])
    made = Comparison(prompt, (answer,))
    _check(made)
    return made


def compares(row: Mapping[str, Any]) -> bool:
    """Whether a row ranks or labels its responses; a label that is a text, a reference response say, does not."""
    cells = present(row)
    if all(cells.get(key) is not None for key in RANKED) or _sides(cells)[1] is not None:
        return True
    labels = [str(cells[key]).strip().lower() for key in LABELS if key in cells]
    return bool(labels) and labels[0] in TRUTHS


def recognise_comparison(row: Mapping[str, Any]) -> Recognised:
    """Return the format that `to_comparison` reads a row as, and the columns that it uses."""
    cells = present(row)
    own: list[str | None] = [*_sides(cells), "margin"]
    shape: Shape = "pair"
    if all(cells.get(key) is not None for key in RANKED):
        shape, own = "ranked responses", list(RANKED)
    elif own[1] is None:
        shape, own = "labelled response", [next((key for key in LABELS if key in cells), None)]
    used = [key for key in own if key in cells and key is not None]
    rest = {key: cell for key, cell in cells.items() if key not in (*CHOSEN, *REJECTED, *LABELS, *RANKED, "margin")}
    try:
        prompt = recognise(rest).columns
    except RowError:  # the responses hold the whole conversation
        prompt = tuple(key for key in EXTRAS if key in rest)
    return Recognised(shape, (*prompt, *used))


def as_kind(made: Comparison, kind: RowKind) -> list[Comparison]:
    """Return what a stage trains on: a comparison of ranks, or labelled responses, one each.

    Of a comparison, the best responses are taken as good and the others as bad.

    Raises:
        RowError: The row has no responses of different ranks.
    """
    is_labelled = made.answers[0].label is not None
    if is_labelled and kind == "labels":
        return [made]
    if is_labelled:
        raise RowError("it labels a single response, and has none to compare it with: `llmtune kto` trains on labels")
    if len({answer.rank for answer in made.answers}) < 2:
        raise RowError("its responses are ties: all have the same rank")
    if kind == "pairs":
        return [made]
    return [replace(made, answers=(replace(one, rank=0, label=one.rank == 0),), margin=None) for one in made.answers]


def _sides(cells: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the columns of the chosen and of the rejected response."""
    chosen = next((key for key in CHOSEN if cells.get(key) is not None), None)
    return chosen, next((key for key in REJECTED if cells.get(key) is not None), None)


def _pair(cells: Mapping[str, Any], chosen: str | None, rejected: str, found: Found) -> Comparison:
    rest = {key: value for key, value in cells.items() if key not in (*CHOSEN, *REJECTED, *LABELS, "margin")}
    better: Any
    if chosen is None:  # ms-swift: the conversation itself ends with the chosen response
        better, rest = _last_answer(rest)
    else:
        better = cells[chosen]
    worse = cells[rejected]
    if _is_dialogue(better) and _is_dialogue(worse):
        better, worse = _dialogue(better), _dialogue(worse)
    first = _conversation(rest, better, found)
    second = _conversation(rest, worse, Found())
    prompt, answers = _split([first, second])
    margin = cells.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise RowError(f"column 'margin' holds {kind_of(margin)}, not a number")
    ranked = tuple(replace(answer, rank=rank) for rank, answer in enumerate(answers))
    return Comparison(prompt, ranked, None if margin is None else float(margin))


def _last_answer(cells: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the response that ends a row, and the row without it."""
    key = next((key for key in LISTS if isinstance(cells.get(key), (list, tuple)) and cells[key]), None)
    if key is None:
        _, answer = question_and_answer(cells)
        if answer is None:
            raise RowError("it has a rejected response and no chosen one")
        return cells[answer], {name: cell for name, cell in cells.items() if name != answer}
    messages = list(cells[key])
    start = next((at for at in range(len(messages), 0, -1) if _role_of(messages[at - 1]) in ("user", "human")), 0)
    if start == len(messages):
        raise RowError("it has a rejected response, and its messages end with a question: the chosen one is missing")
    return messages[start:], {**cells, key: messages[:start]}


def _role_of(message: Any) -> str:
    cells = present(message) if isinstance(message, Mapping) else {}
    return str(cells.get("role", cells.get("from", ""))).lower()


def _conversation(rest: Mapping[str, Any], answer: Any, found: Found) -> Conversation:
    if isinstance(answer, str) and not answer.strip():
        raise RowError("a response is empty")
    return to_conversation({**rest, "chosen": answer}, found=found)


def _ranked(cells: Mapping[str, Any], found: Found) -> Comparison:
    rest = {key: value for key, value in cells.items() if key not in RANKED} | {"messages": cells["context"]}
    given = cells["completions"]
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(one, Mapping) for one in given):
        raise RowError("column 'completions' holds no list of {rank, completion}")
    ranks = [one.get("rank") for one in given]
    if not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks) or not given:
        raise RowError("an entry of 'completions' has no rank, an integer")
    read = [_conversation(rest, one.get("completion"), found) for one in given]
    prompt, answers = _split(read)
    order = sorted(range(len(given)), key=lambda at: ranks[at])
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return Comparison(prompt, tuple(replace(answers[at], rank=places[ranks[at]]) for at in order))


def _labelled(cells: Mapping[str, Any], found: Found) -> Comparison:
    name = next((key for key in LABELS if key in cells), None)
    if name is None:
        names = ", ".join(repr(key) for key in cells)
        raise RowError(f"it is no row of preferences: its keys are {names}; expected {EXPECTED}")
    label = cells[name]
    if isinstance(label, str):
        label = TRUTHS.get(label.strip().lower(), label)
    if isinstance(label, int) and not isinstance(label, bool) and label in (0, 1):
        label = bool(label)
    if not isinstance(label, bool):
        raise RowError(f"column {name!r} holds {label!r}, which is neither true nor false")
    rest = {key: value for key, value in cells.items() if key not in (*LABELS, "margin")}
    prompt, (answer,) = _split([to_conversation(rest, found=found)])
    return Comparison(prompt, (replace(answer, label=label),))


def _split(conversations: Sequence[Conversation]) -> tuple[Conversation, list[Answer]]:
    """Return the beginning that all share, and the rest of each, which may hold no question.

    Of a single conversation, the response is all that follows its last question.
    """
    plain = [tuple(replace(one, loss=False, weight=1.0) for one in each.messages) for each in conversations]
    asked = [place for place, message in enumerate(plain[0]) if message.role == "user"]
    if not asked:
        raise RowError("it has no question that its responses answer")
    shared = asked[-1] + 1 if len(plain) == 1 else _num_shared(plain)
    for number, messages in enumerate(plain, start=1):
        if any(message.role == "user" for message in messages[shared:]):
            raise RowError(f"the prompts of responses 1 and {max(number, 2)} differ, at message {shared + 1}")
        if len(messages) == shared:
            raise RowError("its responses are the same, or one is the beginning of another")
    answers = [
        Answer(tuple(replace(message, loss=message.role == "assistant") for message in messages[shared:]))
        for messages in plain
    ]
    return replace(conversations[0], messages=plain[0][:shared]), answers


def _num_shared(sequences: Sequence[Sequence[Any]]) -> int:
    """Return the length of the common beginning."""
    differing = (
        place for place, group in enumerate(zip(*sequences, strict=False)) if group.count(group[0]) < len(group)
    )
    return next(differing, min(map(len, sequences)))


def _check(made: Comparison) -> None:
    for answer in made.answers:
        if not any(message.content.strip() or message.tool_calls for message in answer.messages):
            raise RowError("a response is empty")


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def _dialogue(text: str) -> list[dict[str, str]]:
    """Read a text of HH-RLHF: turns of `Human:` and `Assistant:`, each after an empty line."""
    parts = HH_TURN.split("\n\n" + text.lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
