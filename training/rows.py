"""A data file, or a data set on the hub, as a stream of (place, row)."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from training.errors import UserError, first_line
from training.hub import check_on_hub

UTF8_BOM = b"\xef\xbb\xbf"


def read_rows(data_path: str) -> Iterator[tuple[str, Any]]:
    """Rows of JSON Lines, of a JSON array, or of the "train" split of a data set on the hub.

    Yields (place, row): place is `path:line` of the row's first character, or `name:row` for the hub, and row
    whatever JSON value stands there.

    Raises UserError with the place for a path that does not exist and for what is not JSON in UTF-8.
    """
    if os.path.isfile(data_path):
        return _read_file(data_path)
    if os.path.isdir(data_path):
        raise UserError(
            f"{data_path}: a directory; --data-path takes a file or the name of a data set on the hub"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", data_path) or data_path.endswith((".json", ".jsonl")):
        raise UserError(f"{data_path}: no such file")
    return _read_hub(data_path)


def _read_file(path: str) -> Iterator[tuple[str, Any]]:
    try:
        with open(path, "rb") as file:
            start = file.read(len(UTF8_BOM))
            file.seek(len(UTF8_BOM) if start == UTF8_BOM else 0)
            yield from _read_array(path, file) if _next_character(file) == b"[" else _read_lines(path, file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _next_character(file: BinaryIO) -> bytes:
    """The first byte that is not white space; the file stands where it stood."""
    position = file.tell()
    while (character := file.read(1)).isspace():
        pass
    file.seek(position)
    return character


def _read_lines(path: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.isspace():
            place = f"{path}:{number}"
            yield place, _parse(place, _decode(path, number, line))


def _parse(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "one JSON object a line, or one JSON array for the whole file"
        raise UserError(f"{place}: not JSON ({_reason(error)}); expected {hint}") from None


def _reason(error: Exception) -> str:
    """Why json refused: a JSONDecodeError says where, a number too long or nesting too deep does not."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return str(error).partition(";")[0]


def _read_array(path: str, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    text = _decode(path, 1, file.read())
    decoder = json.JSONDecoder()
    white = re.compile(r"[ \t\r\n]*")
    line, counted = 1, 0
    position = white.match(text).end() + 1  # past the opening bracket
    separator = "["
    while True:
        position = white.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if separator == "[" and text[position : position + 1] == "]":
            break
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise UserError(f"{path}:{line}: not JSON ({_reason(error)})") from None
        yield f"{path}:{line}", row
        position = white.match(text, position).end()
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            line += text.count("\n", counted, position)
            raise UserError(f"{path}:{line}: not JSON: expected ',' or ']' after a row of the array")
        position += 1
    rest = white.match(text, position + 1).end()
    if rest != len(text):
        line += text.count("\n", counted, rest)
        raise UserError(f"{path}:{line}: not JSON: text after the end of the array")


def _decode(path: str, line: int, data: bytes) -> str:
    """The text of `data`, which starts at `line` of the file."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        byte = f"{data[error.start]:#04x}"
        raise UserError(f"{path}:{line}: not UTF-8 (byte {byte}); save the file as UTF-8") from None


def _read_hub(name: str) -> Iterator[tuple[str, Any]]:
    check_on_hub(name, "dataset")
    import datasets  # slow to import, and only needed here

    try:
        rows = datasets.load_dataset(name, split="train")
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: the hub's data set cannot be read ({first_line(error)})") from None
    for number, row in enumerate(rows, start=1):
        yield f"{name}:{number}", row
