"""The rows of JSON: a value on each line, one array, or values that go over several lines.

{"instruction": ...}            JSON Lines, read as a stream; places are lines
{"instruction": ...}

[{"instruction": ...}, ...]     an array, read whole, as are the other two; places are the numbers of rows

{                               objects over several lines, each of them a row
  "instruction": ...
}

{"version": "1", "data": [...]} one object around the rows: beside "data" it has only bookkeeping
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from training.common.console import say
from training.data.raw_row import NotRead, RawRow, json_problem
from training.text.keys import is_bookkeeping

# White space as JSON defines it.
WHITE = re.compile(r"[ \t\r\n]*")

# From this size on, what is read whole is announced.
LARGE_BYTES = 1 << 30

REST_NOT_READ = "the array was not read from here on"
FILE_NOT_READ = "the file was not read from here on"
NO_ROW_READ = "no row of the array was read"

# The key of the rows in one object around them.
WRAPPED = "data"


def read_json(file: BinaryIO, path: str) -> Iterator[RawRow]:
    """The rows of a JSON file in any of its forms; `file` is past a byte order mark."""
    blank = []
    for line in file:
        if not line.isspace():
            break
        blank.append(line)
    else:
        return
    following = next(file, b"")
    if line.lstrip().startswith(b"["):
        yield from _read_array(_whole(file, [*blank, line, following], path))
    elif _goes_on(line.strip(), following.strip()):
        yield from _read_values(_whole(file, [*blank, line, following], path))
    else:
        yield from _read_lines(itertools.chain([line, following], file), first=len(blank) + 1)


def _read_lines(lines: Iterable[bytes], first: int) -> Iterator[RawRow]:
    """The rows of JSON Lines; the first of `lines` has the first row, and is the line `first` of the file."""
    numbered = enumerate(lines, start=first)
    filled = (RawRow(number, line) for number, line in numbered if line and not line.isspace())
    row = next(filled)
    second = next(filled, None)
    if second is None:
        yield from _wrapped_rows(row.content) or [row]
        return
    yield row
    yield second
    yield from filled


def _whole(file: BinaryIO, start: list[bytes], path: str) -> bytes:
    """All bytes of a file, of which `start` was read already."""
    data = b"".join([*start, file.read()])
    if len(data) >= LARGE_BYTES:
        say(
            f"{path}: {len(data) / 1e9:.1f} GB of JSON are read whole, for which the memory has to suffice; "
            "JSON Lines, one row a line, are read row by row",
            on_stderr=True,
        )
    return data


def _goes_on(line: bytes, following: bytes) -> bool:
    """Whether an object begins on this line and goes on in the next, as in indented JSON.

    In JSON Lines whose first line is cut off, the next line begins an object of its own.
    """
    opens_list = line.endswith(b"[")
    is_open = line.startswith(b"{") and (opens_list or line.endswith((b"{", b",")))
    return is_open and (opens_list or not following.startswith(b"{"))


def _wrapped_rows(line: bytes) -> list[RawRow]:
    """The rows of the only line of a file, where it is an object around them; else none."""
    if f'"{WRAPPED}"'.encode() not in line:
        return []
    try:
        return _rows_inside(json.loads(line))
    except (ValueError, RecursionError):
        return []


def _rows_inside(value: Any) -> list[RawRow]:
    """The rows of an object around them: beside them it has only bookkeeping. None of any other value."""
    rows = value.get(WRAPPED) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not any(isinstance(row, dict) for row in rows):
        return []
    for name, inner in value.items():
        if name != WRAPPED and not is_bookkeeping(name, inner):
            return []
    return [RawRow(number, row) for number, row in enumerate(rows, start=1)]


def _read_values(data: bytes) -> Iterator[RawRow]:
    """The rows of values over several lines, one after another, or of one object around the rows."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield RawRow(1, NotRead(_not_utf8_line(error)))
        return
    decoder = json.JSONDecoder()
    position = _past_white(text, 0)
    for number in itertools.count(1):
        if position == len(text):
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield RawRow(number, NotRead(f"not JSON ({_line_and_problem(error)}); {FILE_NOT_READ}"))
            return
        position = _past_white(text, position)
        if number == 1 and position == len(text) and (rows := _rows_inside(value)):
            yield from rows
            return
        yield RawRow(number, value)


def _read_array(data: bytes) -> Iterator[RawRow]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield RawRow(1, NotRead(f"{_not_utf8_line(error)}; {NO_ROW_READ}"))
        return
    decoder = json.JSONDecoder()
    position = _past_white(text, 0) + 1  # past the opening bracket
    separator = "["
    for number in itertools.count(1):
        position = _past_white(text, position)
        if separator == "[" and text[position : position + 1] == "]":
            break
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield RawRow(number, NotRead(f"not JSON ({_line_and_problem(error)}); {REST_NOT_READ}"))
            return
        yield RawRow(number, row)
        position = _past_white(text, position)
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            problem = f"not JSON: expected ',' or ']' before the row (line {_line_at(text, position)})"
            yield RawRow(number + 1, NotRead(f"{problem}; {REST_NOT_READ}"))
            return
        position += 1
    rest = _past_white(text, position + 1)
    if rest != len(text):
        problem = f"not JSON: text after the end of the array (line {_line_at(text, rest)})"
        yield RawRow(number, NotRead(problem))


def _past_white(text: str, position: int) -> int:
    """The first position from `position` on that holds no white space, or the end of the text."""
    white = WHITE.match(text, position)
    assert white is not None, "the pattern matches the empty text too"
    return white.end()


def _line_at(text: str, position: int) -> int:
    return 1 + text.count("\n", 0, position)


def _line_and_problem(error: Exception) -> str:
    line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
    return line + json_problem(error)


def _not_utf8_line(error: UnicodeDecodeError) -> str:
    line = 1 + error.object.count(b"\n", 0, error.start)
    return f"not UTF-8 (line {line}, byte {error.object[error.start]:#04x}); save the file as UTF-8"
