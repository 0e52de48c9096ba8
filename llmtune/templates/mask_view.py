"""Show tokens as text, with the trainable ones marked, for a terminal or a browser."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import Any

from llmtune.types import IGNORE_INDEX

PLACEHOLDER = "·"
"""Placeholder of a token with the first bytes of a character; the character is shown on its last token."""

INCOMPLETE = "\ufffd"
MAX_BYTES = 4  # of a character in UTF-8: so many tokens can share one

TRAINABLE_SHADES = ("\x1b[97;48;5;28m", "\x1b[97;48;5;22m")
RESET = "\x1b[0m"

# Control characters in the data must neither vanish nor steer the terminal.
_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {10: "⏎\n", 127: "␡"}
_VISIBLE |= dict.fromkeys(range(128, 160), "␦")


@dataclass(frozen=True, slots=True)
class TokenView:
    """One token as shown. `trainable`: whether it contributes to the loss."""

    text: str
    trainable: bool
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class HtmlRow:
    """One sample of a page: its rendered text, and its tokens."""

    rendered: str
    views: Sequence[TokenView]


def token_views(tokenizer: Any, input_ids: Sequence[int], labels: Sequence[int]) -> list[TokenView]:
    """Decode token by token.

    A character whose bytes are spread over several tokens is shown on the last of them. Control characters are made
    visible; a line break is shown as `⏎` and a line break.

    Args:
        labels: As long as `input_ids`; IGNORE_INDEX where a token is not trainable.
    """
    texts = _token_texts(tokenizer, list(input_ids))
    return [
        TokenView(text.translate(_VISIBLE), label != IGNORE_INDEX, token)
        for text, token, label in zip(texts, input_ids, labels, strict=True)
    ]


def with_short_media(views: Sequence[TokenView], token_ids: Container[int]) -> list[TokenView]:
    """Merge the positions of each image into one: an image may have thousands, which all look the same."""
    found: list[TokenView] = []
    for token, run in groupby(views, lambda view: view.token_id if view.token_id in token_ids else None):
        same = list(run)
        found += same if token is None or len(same) == 1 else [replace(same[0], text=f"{same[0].text} x {len(same)}")]
    return found


def to_ansi(views: Sequence[TokenView], *, colour: bool) -> str:
    """Return the tokens as text for a terminal: trainable ones on two shades of green, or without colour in ⟦ ⟧."""
    if not colour:
        parts: list[str] = []
        for trainable, run in groupby(views, lambda view: view.trainable):
            text = "".join(view.text for view in run)
            parts.append(f"⟦{text}⟧" if trainable else text)
        return "".join(parts)
    return "".join(
        _paint(view.text, TRAINABLE_SHADES[index % 2]) if view.trainable else view.text
        for index, view in enumerate(views)
    )


def to_html(title: str, statistics: Mapping[str, str], rows: Sequence[HtmlRow]) -> str:
    """Return a self-contained page: statistics, a legend, and each row's tokens with their ids as tooltips."""
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in statistics.items())
    body = "".join(_row_html(number, row) for number, row in enumerate(rows, start=1))
    return _PAGE.format(style=_STYLE, title=escape(title), table=table, rows=body)


def tokens_html(title: str, views: Sequence[TokenView]) -> str:
    """Return one sample for a notebook, with styles of its own for light and dark pages."""
    spans = "".join(_span_html(view) for view in views)
    num_trainable = sum(view.trainable for view in views)
    return (
        f"<div class='llmtune-tokens'><style>{_INLINE_STYLE}</style><p>{escape(title)}: {len(views)} tokens, "
        f"{num_trainable} trainable (green)</p><div class='tokens'>{spans}</div></div>"
    )


def _token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Decode each token by the text that it adds to the ones before: some decoders drop a leading blank."""
    texts: list[str] = []
    start = done = 0  # ids[start:done] is shown and complete: the context of what comes next
    opened = 0  # the token in which the incomplete character begins; one may end another character and begin it
    shown = ""  # of the tokens from done on
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[start:done])
        text = _decode(tokenizer, ids[start:end])
        text = text[len(before) :] if text.startswith(before) else _decode(tokenizer, ids[done:end])
        complete = text.rstrip(INCOMPLETE)
        if len(complete) > len(shown):
            opened = end - 1
        if complete == text or end - opened >= MAX_BYTES:
            texts.append(text[len(shown) :])
            start, done, opened, shown = done, end, end, ""
        else:
            texts.append(complete[len(shown) :] + PLACEHOLDER)
            shown = complete
    return texts


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""


def _paint(text: str, shade: str) -> str:
    # The colour ends before each line break; else terminals paint the rest of the line.
    return "\n".join(f"{shade}{line}{RESET}" if line else "" for line in text.split("\n"))


def _row_html(number: int, row: HtmlRow) -> str:
    spans = "".join(_span_html(view) for view in row.views)
    num_trainable = sum(view.trainable for view in row.views)
    return (
        f"<section>\n<h2>Row {number}</h2>\n<p>{len(row.views)} tokens, {num_trainable} trainable</p>\n"
        f'<div class="tokens">{spans}</div>\n'
        f"<details><summary>Text</summary><pre>{escape(row.rendered)}</pre></details>\n</section>\n"
    )


def _span_html(view: TokenView) -> str:
    mark = ' class="trainable"' if view.trainable else ""
    name = "" if view.token_id is None else f' title="{view.token_id}"'
    return f"<span{mark}{name}>{escape(view.text)}</span>"


_STYLE = """
:root { color-scheme: light dark; --back: #fff; --fore: #1a1a1a; --line: #ccc; --odd: #eee; --even: #f8f8f8;
  --trainable-odd: #a5dba5; --trainable-even: #c9efc9; }
@media (prefers-color-scheme: dark) { :root { --back: #16181a; --fore: #e6e6e6; --line: #444; --odd: #24272a;
  --even: #1c1f22; --trainable-odd: #1e5f2b; --trainable-even: #17481f; } }
body { background: var(--back); color: var(--fore); font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; }
.tokens, pre { border: 1px solid var(--line); padding: .6rem; font: 14px/1.7 ui-monospace, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.tokens span:nth-child(odd), .legend .plain { background: var(--odd); }
.tokens span:nth-child(even) { background: var(--even); }
.tokens span.trainable:nth-child(odd), .legend .trainable { background: var(--trainable-odd); }
.tokens span.trainable:nth-child(even) { background: var(--trainable-even); }
"""
_INLINE_STYLE = """
.llmtune-tokens .tokens { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.llmtune-tokens span:nth-child(odd) { background: rgba(128, 128, 128, .12); }
.llmtune-tokens span.trainable:nth-child(odd) { background: rgba(46, 160, 67, .45); }
.llmtune-tokens span.trainable:nth-child(even) { background: rgba(46, 160, 67, .3); }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<table>
{table}</table>
<p class="legend"><span class="trainable">Trainable</span> tokens contribute to the loss, <span class="plain">other
tokens</span> are context. Shades alternate from token to token; hover over a token to see its id. ⏎ is a line break,
· a token whose character is completed by a later one.</p>
{rows}</body>
</html>
"""
