"""A data file, or a data set on the hub, as a stream of (place, row)."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from training.common.errors import UserError, first_line
from training.common.hub import check_on_hub

UTF8_BOM = b"\xef\xbb\xbf"

REST_NOT_READ = "the array was not read from here on"
NO_ROW_READ = "no row of the array was read"


class RawRow(NamedTuple):
    """One row before it is parsed, and the number of the line that it starts on (on the hub, of the row).

    The content is the bytes of a line, a value that was parsed already, or `NotRead`.
    """

    number: int
    content: Any


class NotRead(NamedTuple):
    """Why a JSON array cannot be read on from here; no row follows."""

    problem: str


def read_rows(data_path: str) -> Iterator[tuple[str, Any]]:
    """Rows of JSON Lines, of a JSON array, or of the "train" split of a data set on the hub.

    Yields (place, row): place is `path:line` of the row's first character, or `name:row` for the hub, and row
    whatever JSON value stands there.

    Raises UserError with the place for a path that does not exist and for what is not JSON in UTF-8.
    """
    return _parsed(data_path, read_raw_rows(data_path))


def _parsed(data_path: str, raw_rows: Iterator[RawRow]) -> Iterator[tuple[str, Any]]:
    for raw in raw_rows:
        place = f"{data_path}:{raw.number}"
        try:
            yield place, parse(raw)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None


def read_raw_rows(data_path: str) -> Iterator[RawRow]:
    """The rows of `read_rows` for `parse`, so that one bad row need not be the end.

    JSON Lines are read as a stream, a JSON array whole. Raises UserError for a path that does not exist.
    """
    if _is_file(data_path):
        return _read_file(data_path)
    return (RawRow(number, row) for number, row in enumerate(_hub_rows(data_path), start=1))


def parse(raw: RawRow) -> Any:
    """The JSON value of a row. Raises ValueError, without the place, for what is not JSON in UTF-8."""
    if isinstance(raw.content, NotRead):
        raise ValueError(raw.content.problem)
    if not isinstance(raw.content, bytes):
        return raw.content
    try:
        return json.loads(raw.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error)) from None
    except (ValueError, RecursionError) as error:
        hint = "one JSON object a line, or one JSON array for the whole file"
        raise ValueError(f"not JSON ({_reason(error)}); expected {hint}") from None


def has_bom(data_path: str) -> bool:
    """Whether it is a file that starts with a byte order mark, which is read over."""
    if not _is_file(data_path):
        return False
    with _reading(data_path) as file:
        return file.read(len(UTF8_BOM)) == UTF8_BOM


def fingerprint(data_path: str) -> str:
    """A hash of the bytes of a file, or of the files that a data set of the hub was downloaded to.

    Raises UserError for a path that does not exist or cannot be read.
    """
    if _is_file(data_path):
        paths = [data_path]
    else:
        paths = [file["filename"] for file in _hub_rows(data_path).cache_files]
        assert paths, "load_dataset keeps its rows in files"
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with _reading(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_file(data_path: str) -> bool:
    """True for a file, False for what can be the name of a data set on the hub; UserError for the rest."""
    if os.path.isfile(data_path):
        return True
    if os.path.isdir(data_path):
        raise UserError(f"{data_path}: a directory; name a file, or a data set on the hub")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", data_path) or data_path.endswith((".json", ".jsonl")):
        raise UserError(f"{data_path}: no such file")
    return False


@contextlib.contextmanager
def _reading(path: str) -> Iterator[BinaryIO]:
    """The file, open; UserError for what the system refuses."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _read_file(path: str) -> Iterator[RawRow]:
    with _reading(path) as file:
        start = file.read(len(UTF8_BOM))
        file.seek(len(UTF8_BOM) if start == UTF8_BOM else 0)
        if _next_character(file) == b"[":
            yield from _read_array(file.read())
            return
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield RawRow(number, line)


def _next_character(file: BinaryIO) -> bytes:
    """The first byte that is not white space; the file stands where it stood."""
    position = file.tell()
    while (character := file.read(1)).isspace():
        pass
    file.seek(position)
    return character


def _reason(error: Exception) -> str:
    """Why json refused: a JSONDecodeError says where, a number too long or nesting too deep does not."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error).partition(";")[0]


def _read_array(data: bytes) -> Iterator[RawRow]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield RawRow(1 + data.count(b"\n", 0, error.start), NotRead(f"{_not_utf8(error)}; {NO_ROW_READ}"))
        return
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
            yield RawRow(
                getattr(error, "lineno", line), NotRead(f"not JSON ({_reason(error)}); {REST_NOT_READ}")
            )
            return
        yield RawRow(line, row)
        position = white.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            yield RawRow(line, NotRead(f"not JSON: expected ',' or ']' after a row; {REST_NOT_READ}"))
            return
        position += 1
    rest = white.match(text, position + 1).end()
    if rest != len(text):
        line += text.count("\n", counted, rest)
        yield RawRow(line, NotRead("not JSON: text after the end of the array"))


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"


def _hub_rows(name: str) -> Any:
    """The data set, as the datasets library holds it."""
    check_on_hub(name, "dataset")
    import datasets  # slow to import, and only needed here

    try:
        return datasets.load_dataset(name, split="train")
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: the hub's data set cannot be read ({first_line(error)})") from None
