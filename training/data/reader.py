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

DIGEST_BYTES = 16

UTF8_BOM = b"\xef\xbb\xbf"

# White space as JSON defines it.
WHITE = re.compile(r"[ \t\r\n]*")

REST_NOT_READ = "the array was not read from here on"
NO_ROW_READ = "no row of the array was read"


class RawRow(NamedTuple):
    """One row before it is parsed.

    number: of the line on which the row starts, or of the row in a data set of the hub; the first is 1.
    content: the bytes of a line, a value that was parsed already, or `NotRead`.
    """

    number: int
    content: Any


class NotRead(NamedTuple):
    """The content of the last row where a JSON array cannot be read any further, and why."""

    problem: str


def read_rows(data_path: str) -> Iterator[tuple[str, Any]]:
    """Rows of JSON Lines, of a JSON array, or of the "train" split of a data set on the hub.

    Yields (place, row): place is `path:line` of the row's first character, or `name:row` for the hub, and row
    whatever JSON value stands there.

    Raises UserError with the place for a path that does not exist and for what is not JSON in UTF-8.
    """
    return _parse_rows(data_path, read_raw_rows(data_path))


def _parse_rows(data_path: str, raw_rows: Iterator[RawRow]) -> Iterator[tuple[str, Any]]:
    for raw in raw_rows:
        place = f"{data_path}:{raw.number}"
        try:
            yield place, parse(raw)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None


class RawRows(Iterator[RawRow]):
    """The rows of a data file or data set, and its fingerprint, which the same reading gives.

    has_bom: whether the file starts with a byte order mark, which is skipped; known with the first row.
    """

    def __init__(self, data_path: str) -> None:
        self.data_path = data_path
        self.has_bom = False
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._hub_rows = None if _is_file(data_path) else _hub_rows(data_path)
        self._rows = self._read_file() if self._hub_rows is None else self._read_hub()

    def __next__(self) -> RawRow:
        return next(self._rows)

    @property
    def fingerprint(self) -> str:
        """The `fingerprint` of what was read, known after the last row, even if the file changes later."""
        if self._hub_rows is not None:
            return _hash_of_files(_files_of(self._hub_rows))
        return self._digest.hexdigest()

    def _read_file(self) -> Iterator[RawRow]:
        with _open_file(self.data_path) as file:
            start = file.read(len(UTF8_BOM))
            self.has_bom = start == UTF8_BOM
            if self.has_bom:
                self._digest.update(start)
            else:
                file.seek(0)
            if _next_character(file) == b"[":
                data = file.read()
                self._digest.update(data)
                yield from _read_array(data)
                return
            for number, line in enumerate(file, start=1):
                self._digest.update(line)
                if not line.isspace():
                    yield RawRow(number, line)

    def _read_hub(self) -> Iterator[RawRow]:
        assert self._hub_rows is not None
        return (RawRow(number, row) for number, row in enumerate(self._hub_rows, start=1))


def read_raw_rows(data_path: str) -> RawRows:
    """The rows of `read_rows` before they are parsed, so that one bad row need not be the end.

    JSON Lines are read as a stream, a JSON array as a whole. Raises UserError for a path that does not exist.
    """
    return RawRows(data_path)


def parse(raw: RawRow) -> Any:
    """The JSON value of a row. Raises ValueError, which names no place, if it is not JSON in UTF-8."""
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


def fingerprint(data_path: str) -> str:
    """A hash of the bytes of a file, or of the files that a data set of the hub was downloaded to.

    Raises UserError for a path that does not exist or cannot be read.
    """
    return _hash_of_files([data_path] if _is_file(data_path) else _files_of(_hub_rows(data_path)))


def _files_of(hub_rows: Any) -> list[str]:
    """The files that a data set of the hub was downloaded to."""
    paths = [file["filename"] for file in hub_rows.cache_files]
    assert paths, "load_dataset keeps its rows in files"
    return paths


def _hash_of_files(paths: list[str]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in paths:
        with _open_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_file(data_path: str) -> bool:
    """Whether this is a file. Raises UserError if it can be no name of a data set on the hub either."""
    if os.path.isfile(data_path):
        return True
    if os.path.isdir(data_path):
        raise UserError(f"{data_path}: a directory; name a file, or a data set on the hub")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", data_path) or data_path.endswith((".json", ".jsonl")):
        raise UserError(f"{data_path}: no such file")
    return False


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[BinaryIO]:
    """Open the file. Raises UserError for what the system refuses while it is open."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _next_character(file: BinaryIO) -> bytes:
    """The next byte that is not white space; the position in the file stays as it was."""
    position = file.tell()
    while (character := file.read(1)).isspace():
        pass
    file.seek(position)
    return character


def _reason(error: Exception) -> str:
    """What the json library says: with the column, unless a number is too long or the nesting too deep."""
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
    line, counted = 1, 0
    position = _past_white(text, 0) + 1  # past the opening bracket
    separator = "["
    while True:
        position = _past_white(text, position)
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
        position = _past_white(text, position)
        line, counted = line + text.count("\n", counted, position), position
        separator = text[position : position + 1]
        if separator == "]":
            break
        if separator != ",":
            yield RawRow(line, NotRead(f"not JSON: expected ',' or ']' after a row; {REST_NOT_READ}"))
            return
        position += 1
    rest = _past_white(text, position + 1)
    if rest != len(text):
        line += text.count("\n", counted, rest)
        yield RawRow(line, NotRead("not JSON: text after the end of the array"))


def _past_white(text: str, position: int) -> int:
    """The first position from `position` on that holds no white space, or the end of the text."""
    white = WHITE.match(text, position)
    assert white is not None, "the pattern matches the empty text too"
    return white.end()


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"


def _hub_rows(name: str) -> Any:
    """The "train" split of a data set, as an object of the datasets library."""
    check_on_hub(name, "dataset")
    import datasets  # slow to import, and only needed here

    try:
        return datasets.load_dataset(name, split="train")
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: the hub's data set cannot be read ({first_line(error)})") from None
