"""One row of a data file as its reader leaves it: the bytes of a line, a value, or what is wrong with it."""

import json
from typing import Any, NamedTuple


class RawRow(NamedTuple):
    """One row before it is parsed.

    number: where the row stands, the first being 1: the line of JSON Lines, CSV and Markdown on which it
    starts, the row of an Excel sheet as Excel numbers it, and of anything else the number of the row.
    content: the bytes of a line, a value that was parsed already, `Broken`, or `NotRead`.
    """

    number: int
    content: Any


class Broken(NamedTuple):
    """The content of a row that cannot be parsed, and why; the rows after it can be."""

    problem: str


class NotRead(NamedTuple):
    """The content of the last row where a file cannot be read any further, and why."""

    problem: str


def parse(raw: RawRow) -> Any:
    """The JSON value of a row. Raises ValueError, which names no place, if it is not JSON in UTF-8."""
    if isinstance(raw.content, NotRead | Broken):
        raise ValueError(raw.content.problem)
    if not isinstance(raw.content, bytes):
        return raw.content
    try:
        return json.loads(raw.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from None
    except (ValueError, RecursionError) as error:
        hint = "one JSON object a line, or one JSON array for the whole file"
        raise ValueError(f"not JSON ({json_problem(error)}); expected {hint}") from None


def json_problem(error: Exception) -> str:
    """What the json library says: with the column, unless a number is too long or the nesting too deep."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error).partition(";")[0]


def not_utf8(error: UnicodeDecodeError) -> str:
    """The problem of bytes that are not UTF-8."""
    return f"not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"
