"""Read the layouts of a JSON file: one object per line, one big array (read in chunks), or an object around the list.

Concatenated objects, `{...}{...}`, as if their line ends were lost, are read one after the other.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmtune.data.files import CHUNK_BYTES, BadLine, Located, decode, extension_of, open_bytes, read_lines
from llmtune.data.shapes import ANSWERS, LISTS, recognise
from llmtune.data.values import excerpt
from llmtune.errors import DataError, RowError
from llmtune.utils.logging import get_logger

GLUED = "}{"
"""Placeholder of a first line that is too long to be read as one."""

ROW_LISTS = frozenset(
    {"messages", "conversations", "conversation", "history", "tools", "images", "image", "prompt", "completion"}
    | {"chosen", "rejected", "chosen_messages", "rejected_messages", "rejected_response"}
    | {"context", "completions", "response_chosen", "response_rejected"}
)
"""Keys of lists that belong to one row: an object that holds one of these is a row, not a wrapper around rows."""


COMPLETE = frozenset({*ANSWERS, *LISTS, "text", "chosen"})
"""Columns that a complete row needs."""

MESSAGE_KEYS = frozenset({"role", "from", "human", "assistant"})


def read_json(path: Path) -> Iterator[Located]:
    """Read `.json`, `.jsonl` and `.ndjson` by their content, not by their extension."""
    lines = ((number, line) for number, line in _filled_lines(path))
    first = next(lines, None)
    if first is None:
        return
    _, line = first
    if line.lstrip().startswith("["):
        yield from _read_array(path)
        return
    if line == GLUED:
        yield from _read_glued(path)
        return
    if extension_of(path) == ".json" and _parse(line) is None:
        yield from _read_document(path)
        return
    second = next(lines, None)
    row = _parse(line)
    if second is None and isinstance(row, dict) and (name := _wrapped_list(path, row)):
        yield from _rows_of(row[name])
        return
    head = [first] if second is None else [first, second]
    yield from _read_lines(path, itertools.chain(head, lines))


def is_cut_by_lines(path: Path) -> bool:
    """Whether `read_json` reads a file line by line, each by itself, and its first line is JSON."""
    lines = (line for _, line in _filled_lines(path))
    first = next(lines, None)
    if first is None or first == GLUED or first.lstrip().startswith("[") or _parse(first) is None:
        return False
    return next(lines, None) is not None


def _filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank; of a first line of many megabytes (an array, say) only the head is read."""
    with open_bytes(path) as file:
        head = file.read(CHUNK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if b"\n" not in head.rstrip():
        if head.startswith(b"["):
            yield 1, "["
            return
        if head.startswith(b"{") and _begins_glued(path):
            yield 1, GLUED
            return
    for number, line in read_lines(path):
        if line.strip():
            yield number, line


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _wrapped_list(path: Path, row: dict[str, Any]) -> str | None:
    """Return the key of the list of rows in a wrapper object; None for an object that is a row itself."""
    lists = [name for name, value in row.items() if isinstance(value, list)]
    if len(lists) != 1 or not all(isinstance(item, dict) for item in row[lists[0]]):
        return None
    name, items = lists[0], row[lists[0]]
    holds_rows = bool(items) and not MESSAGE_KEYS & set(items[0]) and bool(_columns_of(items[0]) & COMPLETE)
    if name in ROW_LISTS and not (name in LISTS and holds_rows):
        return None
    columns = _columns_of(row) - {name}
    if columns & COMPLETE or (columns and not holds_rows):
        return None
    if others := [key for key in row if key != name]:
        get_logger().info(f"{path}: its rows are the list {name!r}; not read: {', '.join(others[:5])}")
    return name


def _columns_of(row: dict[str, Any]) -> set[str]:
    """Return the columns that a row would be read from; none where it has no known format."""
    try:
        return set(recognise(row).columns)
    except RowError:
        return set()


def _rows_of(items: Iterable[Any]) -> Iterator[Located]:
    for number, item in enumerate(items, start=1):
        yield f"row {number}", item if isinstance(item, dict) else _not_an_object(item)


def _not_an_object(item: Any) -> BadLine:
    kind = {list: "a list", str: "a string", type(None): "null"}.get(type(item), "a number or a boolean")
    return BadLine(f"not a JSON object but {kind}", excerpt(item))


def read_json_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Located]:
    """Read some of the lines of a file that `is_cut_by_lines`."""
    filled = ((number, line) for number, line in lines if line.strip())
    return _read_lines(path, filled, is_whole=False)


def _read_lines(
    path: Path, lines: Iterable[tuple[int, str]], whole: DataError | None = None, *, is_whole: bool = True
) -> Iterator[Located]:
    any_parsed, first_error = not is_whole, whole
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as err:
            if glued := _unglued(line):
                any_parsed = True
                yield from ((f"line {number}, object {count}", row) for count, row in enumerate(glued, start=1))
                continue
            cause = err.msg if isinstance(err, json.JSONDecodeError) else "nested too deeply or a number too long"
            column = f", column {err.pos + 1}" if isinstance(err, json.JSONDecodeError) else ""
            first_error = first_error or _not_json(path, number, f"{cause}{column}")
            yield f"line {number}", BadLine(f"not JSON ({cause}{column})", line.strip()[:80])
            continue
        any_parsed = True
        yield f"line {number}", row if isinstance(row, dict) else _not_an_object(row)
    if not any_parsed and first_error is not None:
        raise first_error


def _unglued(line: str) -> list[dict[str, Any]]:
    """Return the objects of a line that consists of several objects, else an empty list."""
    decoder, found, at, end = json.JSONDecoder(), [], 0, len(line.rstrip())
    while at < end:
        try:
            value, at = decoder.raw_decode(line, _filled_from(line, at))
        except (ValueError, RecursionError):
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
    return found


def _filled_from(line: str, at: int) -> int:
    while line[at].isspace():  # the caller knows that something follows
        at += 1
    return at


def _begins_glued(path: Path) -> bool:
    """Return whether a second object follows on the first one's line."""
    buffer = _Buffer(path)
    try:
        buffer.skip_blank()
        _next_value(buffer)
        first_line = buffer.line()
        return buffer.skip_blank() == "{" and buffer.line() == first_line
    except DataError:
        return False  # the error comes from reading it as lines
    finally:
        buffer.close()


def _read_glued(path: Path) -> Iterator[Located]:
    buffer = _Buffer(path)
    try:
        yield from _rows_of(_glued_items(buffer))
    finally:
        buffer.close()


def _glued_items(buffer: _Buffer) -> Iterator[Any]:
    while buffer.skip_blank():
        yield _next_value(buffer)


def _not_json(path: Path, line: int, cause: str) -> DataError:
    return DataError(f"{path} is not JSON at line {line}: {cause}. Write one JSON object per line, or one JSON array.")


def _read_document(path: Path) -> Iterator[Located]:
    """Read a `.json` file that begins with an object over several lines. It is read whole."""
    numbered = list(read_lines(path))
    try:
        value = json.loads("".join(line for _, line in numbered))
    except (ValueError, RecursionError) as err:
        line = err.lineno if isinstance(err, json.JSONDecodeError) else 1
        whole = _not_json(path, line, getattr(err, "msg", str(err)))
        yield from _read_lines(path, ((number, line) for number, line in numbered if line.strip()), whole)
        return
    if not isinstance(value, dict):
        raise _not_json(path, 1, "neither an object nor an array of objects")
    name = _wrapped_list(path, value)
    yield from _rows_of(value[name] if name else [value])


class _Buffer:
    """Buffer over a file's text that discards what was parsed and knows the line of each position."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.at, self.ended = path, "", 0, False
        self._file, self._pending, self._offset, self._line, self._size = open_bytes(path), b"", 0, 1, CHUNK_BYTES

    def close(self) -> None:
        self._file.close()

    def grow(self) -> None:
        """Read more: twice as much each time that one value does not fit, so that parsing again stays cheap."""
        self._line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        raw = self._file.read(self._size)
        self.ended, self._size = not raw, self._size * 2
        raw = self._pending + raw
        cut = len(raw) if self.ended else len(raw) - _incomplete_tail(raw)
        piece, self._pending = raw[:cut], raw[cut:]
        line = self._line + self.text.count("\n")
        start = len(codecs.BOM_UTF8) if self._offset == 0 and piece.startswith(codecs.BOM_UTF8) else 0
        self.text += decode(piece[start:], self.path, line=line, offset=self._offset + start)
        self._offset += cut

    def parsed(self) -> None:
        self._size = CHUNK_BYTES

    def skip_blank(self) -> str:
        """Return the next character that is not white space, or an empty string at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.grow()

    def line(self) -> int:
        return self._line + self.text.count("\n", 0, self.at)

    def error(self, cause: str, at: int | None = None) -> DataError:
        line = self._line + self.text.count("\n", 0, self.at if at is None else at)
        return _not_json(self.path, line, cause)


def _incomplete_tail(raw: bytes) -> int:
    """Count the bytes at the end that begin an incomplete character."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < needed else 0
        if byte < 0x80:
            return 0
    return 0


def _read_array(path: Path) -> Iterator[Located]:
    buffer = _Buffer(path)
    try:
        buffer.skip_blank()
        buffer.at += 1
        yield from _rows_of(_array_items(buffer))
        if buffer.skip_blank():
            raise buffer.error("text after the end of the array")
    finally:
        buffer.close()


def _array_items(buffer: _Buffer) -> Iterator[Any]:
    if buffer.skip_blank() == "]":
        buffer.at += 1
        return
    while True:
        buffer.skip_blank()
        yield _next_value(buffer)
        mark = buffer.skip_blank()
        buffer.at += 1
        if mark == "]":
            return
        if mark != ",":
            buffer.at -= 1
            raise buffer.error("a comma or ] is missing" if mark else "the file ends inside the array")


def _next_value(buffer: _Buffer) -> Any:
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(buffer.text, buffer.at)
        except json.JSONDecodeError as err:
            # An error this far from the end is real; nearer, the value may continue in the next chunk.
            real = err.pos < len(buffer.text) - 20 and not err.msg.startswith("Unterminated")
            if real or buffer.ended:
                raise buffer.error(err.msg, err.pos) from err
        except (ValueError, RecursionError) as err:
            raise buffer.error("nested too deeply or a number too long") from err
        else:
            if end < len(buffer.text) or buffer.ended:
                buffer.at = end
                buffer.parsed()
                return value
        buffer.grow()
