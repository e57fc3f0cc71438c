"""The rows of tables: CSV and TSV as a stream, Parquet group by group, and a sheet of an Excel book whole.

Each row is {name of the column: cell}, without the cells that are empty. A cell of CSV, TSV and Excel is the
text that is shown there; Parquet has values of its own. JSON text in a column of LISTS is read as the list.
"""

import contextlib
import csv
import datetime
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from training.common.errors import UserError, first_line
from training.data.raw_row import Broken, NotRead, RawRow
from training.data.values import plain_value

# The columns that hold lists, which a table of texts has as JSON.
LISTS = ("messages", "conversations", "history")

# Characters of the longest cell of CSV. A quote that is never closed makes a cell of the rest of the file.
LONGEST_CELL = 1 << 28

# What stands between the cells of CSV; the tab is last, so that the others win where there is no choice.
SEPARATORS = ",;\t"

# The most lines that are looked at for the end of a CSV's header.
HEADER_LINES = 100

# How many rows of Parquet are made into Python's values at a time.
PARQUET_ROWS = 256

# What is wrong where the csv module stops, by the end of what it says.
CSV_PROBLEMS = {
    "unexpected end of data": "a quote that opens in this row is never closed",
    "expected after '\"'": 'text after a closing quote; a quote inside such a cell is written twice ("")',
    f"field limit ({LONGEST_CELL})": "a quote that opens in this row is not closed for a very long time",
}


def read_csv(lines: Iterable[str], path: str, separator: str = "") -> Iterator[RawRow]:
    """The rows of CSV, whose first row names the columns; the number of a row is that of its first line.

    lines: with their line ends as they are. separator: without it, the one of SEPARATORS that makes the most
    columns. Raises UserError for a header that cannot be used.
    """
    csv.field_size_limit(LONGEST_CELL)
    lines = iter(lines)
    opening, header = [], []
    for line in lines:
        opening.append(line)
        if header or line.strip():
            header.append(line)
            # A header goes on over the line ends inside its quotes.
            if "".join(header).count('"') % 2 == 0 or len(header) == HEADER_LINES:
                break
    separator = separator or max(SEPARATORS, key=lambda one: len(next(csv.reader(header, delimiter=one), ())))
    table = csv.reader(itertools.chain(opening, lines), delimiter=separator, strict=True)
    names: list[str] = []
    number = 1
    while True:
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            problem = next(
                (text for end, text in CSV_PROBLEMS.items() if str(error).endswith(end)), str(error)
            )
            yield RawRow(number, NotRead(f"{problem}; the file was not read from here on"))
            return
        if not any(map(str.strip, cells)):
            pass  # a blank line, or one of empty cells only
        elif not names:
            names = _column_names(cells, f"{path}:{number}")
        elif any(cells[len(names) :]):
            yield RawRow(
                number,
                Broken(
                    f"{len(cells)} cells, and the header has {len(names)}; a cell with the separator in it "
                    "stands in quotes"
                ),
            )
        else:
            yield RawRow(number, _row_of_texts(names, cells))
        number = table.line_num + 1


def read_book(data: bytes, path: str, sheet: str | None, remarks: list[str]) -> Iterator[RawRow]:
    """The rows of a sheet of an Excel book, whose first filled row names the columns.

    sheet: its name, or None for the only one that is filled. remarks: the list to which the line about
    numbers without their format is added. The number of a row is Excel's. Raises UserError for a book that
    cannot be read, and where a sheet has to be chosen.
    """
    import python_calamine

    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        names = [sheet] if sheet in book.sheet_names else book.sheet_names
        tables = {name: book.get_sheet_by_name(name).to_python(skip_empty_area=False) for name in names}
    except python_calamine.CalamineError as error:
        raise UserError(f"{path}: an Excel book that cannot be read ({first_line(error)})") from None
    filled = {name: table for name, table in tables.items() if any(any(map(_shown, row)) for row in table)}
    if sheet is not None and sheet not in tables:
        raise UserError(f"{path}: no sheet of this name; the book has {', '.join(filled) or 'no filled one'}")
    if len(filled) > 1:
        raise UserError(
            f"{path}: {len(filled)} sheets are filled, {', '.join(filled)}; name one, as in "
            f"'{path}#{next(iter(filled))}'"
        )
    for table in filled.values():
        yield from _read_sheet(table, path, remarks)


def _read_sheet(table: Sequence[Sequence[Any]], path: str, remarks: list[str]) -> Iterator[RawRow]:
    names: list[str] = []
    with_decimals = []
    for number, row in enumerate(table, start=1):
        cells = [_shown(value) for value in row]
        if not any(map(str.strip, cells)):
            continue
        if not names:
            names = _column_names(cells, f"{path}:{number}")
            names += [_nameless(at) for at in range(len(names), len(cells))]
            continue
        with_decimals += [number for value in row if isinstance(value, float) and value % 1]
        yield RawRow(number, _row_of_texts(names, cells))
    if with_decimals:
        remarks.append(
            "numbers with decimals are read as they are stored, without their format (50% is 0.5): "
            f"{len(with_decimals):,}, the first in row {with_decimals[0]}"
        )


def _shown(value: Any) -> str:
    """A cell of Excel as text: whole numbers without a point, dates as 2024-03-01."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return str(int(value)) if value % 1 == 0 else f"{value:.15g}"
    if isinstance(value, datetime.timedelta):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return str(value)


def _column_names(cells: Sequence[str], place: str) -> list[str]:
    """The names of the columns: without white space around them, and with a number where there is none.

    Raises UserError where two columns have one name.
    """
    names = [cell.strip() for cell in cells]
    while not names[-1]:
        names.pop()
    names = [name or _nameless(at) for at, name in enumerate(names)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UserError(f'{place}: two columns are called "{double}"; give each a name of its own')
    return names


def _nameless(at: int) -> str:
    return f"column {at + 1}"


def _row_of_texts(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """The cells that are not empty, by the name of their column."""
    return _with_lists({name: cell for name, cell in zip(names, cells, strict=False) if cell})


def _with_lists(row: dict[str, Any]) -> dict[str, Any]:
    for name in LISTS:
        cell = row.get(name)
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):  # the row's format says what is wrong
                row[name] = json.loads(cell)
    return row


def read_parquet(file: BinaryIO, path: str) -> Iterator[RawRow]:
    """The rows of a Parquet file, by their number. Raises UserError for a file that cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        _column_names(table.schema_arrow.names, path)
        number = 0
        for batch in table.iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(number, _with_lists({name: plain_value(value) for name, value in row.items()}))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: a Parquet file that is cut off or broken ({first_line(error)})") from None
