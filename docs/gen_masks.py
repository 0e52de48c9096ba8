"""Pictures of loss masks: the tokens of a rendered row, the trainable ones in colour.

SVG, so that a difference can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from llmtune import get_template
from llmtune.data.formats import to_conversation
from llmtune.templates.mask_view import TokenView, token_views
from llmtune.types import Json

COLUMNS = 92
WIDTH, LINE, SIZE = 8.4, 22, 14  # of a character, of a line, of the letters, in pixels
MARGIN = 12
SHADES = {True: ("#a5dba5", "#c9efc9"), False: ("#e6e6e6", "#f3f3f3")}

WEATHER: Json = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: list[Json] = [
    {"role": "user", "content": "Is it raining in Bergen?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bergen"}}}],
    },
    {"role": "tool", "content": "rain, 8 degrees"},
    {"role": "assistant", "content": "Yes, at 8 degrees."},
]


class Example(NamedTuple):
    name: str
    template: str
    row: Json


EXAMPLES = (
    Example("one-turn", "chatml", {"query": "What is 1 plus 1?", "response": "1 plus 1 is 2."}),
    Example(
        "two-turns-history",
        "qwen2.5",
        {
            "system": "Answer for the town library.",
            "history": [["Opening hours?", "Nine to five."]],
            "query": "On Sundays?",
            "response": "Closed.",
        },
    ),
    Example(
        "two-turns-messages",
        "qwen2.5",
        {
            "messages": [
                {"role": "system", "content": "Answer for the town library."},
                {"role": "user", "content": "Opening hours?"},
                {"role": "assistant", "content": "Nine to five."},
                {"role": "user", "content": "On Sundays?"},
                {"role": "assistant", "content": "Closed."},
            ]
        },
    ),
    Example(
        "thoughts",
        "qwen3",
        {
            "messages": [
                {"role": "user", "content": "What is 17 times 3?"},
                {"role": "assistant", "content": "<think>\n10 times 3 is 30, 7 times 3 is 21.\n</think>\n\n51"},
            ]
        },
    ),
    Example("tool-call-hermes", "qwen2.5", {"tools": [WEATHER], "messages": CALL}),
    Example("tool-call-react", "chatml", {"tools": [WEATHER], "messages": CALL}),
)


def pages() -> Iterator[tuple[str, str]]:
    from transformers import AutoTokenizer

    from llmtune.models.tiny import tiny_folder

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_folder()))
    for example in EXAMPLES:
        yield f"images/mask-{example.name}.svg", picture(example, tokenizer)


def picture(example: Example, tokenizer: Any) -> str:
    template = get_template(example.template, tokenizer)
    (encoded,) = template.encode_rows([to_conversation(example.row)])
    (sample,) = encoded.samples
    views = token_views(tokenizer, sample.input_ids, sample.labels)
    trainable = sum(view.trainable for view in views)
    title = f"Template {example.template}: {len(views)} tokens, {trainable} trainable"
    return drawn(title, views)


def drawn(title: str, views: Sequence[TokenView]) -> str:
    """Each token in a box; a token that holds a line break ends the line."""
    boxes: list[str] = []
    column, line = 0, 0
    for index, view in enumerate(views):
        for number, part in enumerate(view.text.split("\n")):
            if number:
                column, line = 0, line + 1
            while part:
                if column >= COLUMNS:
                    column, line = 0, line + 1
                piece = part[: COLUMNS - column]
                boxes.append(_box(piece, SHADES[view.trainable][index % 2], column, line))
                column, part = column + len(piece), part[len(piece) :]
    lines = line + (1 if column else 0)
    width = COLUMNS * WIDTH + 2 * MARGIN
    height = lines * LINE + 2 * MARGIN
    style = f"font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: {SIZE}px"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n<g style="{style}" fill="#1a1a1a">\n'
        + "\n".join(boxes)
        + "\n</g>\n</svg>\n"
    )


def _box(text: str, shade: str, column: int, line: int) -> str:
    left, top = MARGIN + column * WIDTH, MARGIN + line * LINE
    width = len(text) * WIDTH
    box = f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{LINE - 2}" fill="{shade}"/>'
    shown = escape(text.replace(" ", "\u00a0"))
    length = f'textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'{box}<text x="{left:.1f}" y="{top + 15}" {length}>{shown}</text>'
