"""Tables: each cell as the text that is shown, each row with its place, each mistake one line."""

import csv
import datetime
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.common.errors import UserError
from training.data.reader import fingerprint, read_raw_rows, read_rows

QUESTION, ANSWER = "什么是存款保险？", "按限额偿付，\n第二行"
TABLE = [["question", "answer"], [QUESTION, ANSWER], ["NA", "001"], ["", ""], ["1.50", "null"]]
ROWS = [
    (2, {"question": QUESTION, "answer": ANSWER}),
    (4, {"question": "NA", "answer": "001"}),
    (6, {"question": "1.50", "answer": "null"}),
]


def text_of(table: Sequence[Sequence[str]], separator: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(table)
    return text.getvalue()


def numbered(path: Path | str) -> list[tuple[int, Any]]:
    """(number, content) of each row; the fingerprint of what was read is that of the file."""
    raw_rows = read_raw_rows(str(path))
    rows = [tuple(raw) for raw in raw_rows]
    assert raw_rows.fingerprint == fingerprint(str(path))
    return rows


def error_of(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        list(read_rows(str(path)))
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.TSV", "\t")]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_csv(tmp_path: Path, capsys, name: str, separator: str, encoding: str, is_compressed: bool) -> None:
    path = tmp_path / (name + ".gz" * is_compressed)
    data = text_of(TABLE, separator).encode(encoding)
    path.write_bytes(gzip.compress(data, mtime=0) if is_compressed else data)
    assert numbered(path) == ROWS
    said = f"{path}: not UTF-8, and read as GB18030\n" if encoding == "gb18030" else ""
    list(read_rows(str(path)))
    assert capsys.readouterr().err == said
    raw_rows = read_raw_rows(str(path))
    next(raw_rows)
    assert raw_rows.has_bom == (encoding == "utf-8-sig")


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)


@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_csv_gives_the_cells_that_were_written(tmp_path_factory, rows: list) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text_of([("a", "b", "c"), *rows]).encode())
    expected = [dict(zip("abc", row, strict=True)) for row in rows if any(map(str.strip, row))]
    assert [row for _, row in numbered(path)] == [
        {name: cell for name, cell in row.items() if cell} for row in expected
    ]


def test_the_line_of_a_row_counts_blank_lines_and_lines_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\n a ,"b"\r\n\r\n"x\ny",1\n,\n2\n', newline="")
    assert numbered(path) == [(4, {"a": "x\ny", "b": "1"}), (7, {"a": "2"})]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_header_may_go_over_several_lines(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n" + text_of([["the, question;\nasked", "answer"], ["q", "a"]], separator), newline="")
    assert numbered(path) == [(4, {"the, question;\nasked": "q", "answer": "a"})]


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text_of([["a"], ["x" * 1_000_000]]))
    assert numbered(path) == [(2, {"a": "x" * 1_000_000})]


def test_json_in_a_column_of_lists_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text_of([["history", "question"], ['[["q", "a"]]', '["q"]'], ["[not", "q"]]))
    assert numbered(path) == [
        (2, {"history": [["q", "a"]], "question": '["q"]'}),
        (3, {"history": "[not", "question": "q"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,3\n", ":2: 3 cells, and the header has 2"),
        ('a,b\n1,2\n"x,y\nz,1\n', ":3: a quote that opens in this row is never closed"),
        ('a,b\n1,"x"y\nz,1\n', ":2: text after a closing quote"),
        ('"a\n', ":1: a quote that opens in this row is never closed"),
        ("a,b,a\n1,2,3\n", ':1: two columns are called "a"'),
        ("a\n问\n".encode() + "问".encode("gb18030"), ": neither UTF-8 (line 3) nor GB18030 (line 2)"),
        ("été\nà été\n".encode("cp1252") * 2, ": neither UTF-8 (line 1)"),
        ("étét,étét\n".encode("cp1252"), ": not UTF-8 (line 1), and hardly GB18030"),
        ("a,b\n".encode("utf-16"), ": text in UTF-16; save it as UTF-8"),
    ],
)
def test_a_mistake_in_csv_is_one_line_with_its_place(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert error_of(path).startswith(f"{path}{message}")


def test_a_row_with_too_many_cells_does_not_end_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2,3\n,,\n1,2,,\n")
    assert [number for number, _ in numbered(path)] == [2, 4]


def write_book(path: Path, **sheets: Sequence[Sequence[Any]]) -> str:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return str(path)


def test_a_book_gives_the_texts_and_the_row_numbers_that_excel_shows(tmp_path: Path, capsys) -> None:
    day, noon = datetime.date(2024, 3, 1), datetime.datetime(2024, 3, 1, 12, 30)
    table = [
        [],
        [None, " 问题 ", "答案", None, "id"],
        [None, QUESTION, ANSWER, None, "001"],
        [],
        [None, 42, 2.5, "x", day],
        [None, noon, True, "", datetime.time(9, 5)],
        [None, "NA", datetime.timedelta(hours=30), None, 1e15],
    ]
    path = write_book(tmp_path / "a.xlsx", 问答=table, 空=[[]])
    rows = [
        (3, {"问题": QUESTION, "答案": ANSWER, "id": "001"}),
        (5, {"问题": "42", "答案": "2.5", "column 4": "x", "id": "2024-03-01"}),
        (6, {"问题": "2024-03-01 12:30:00", "答案": "TRUE", "id": "09:05:00"}),
        (7, {"问题": "NA", "答案": "30:00:00", "id": "1000000000000000"}),
    ]
    assert numbered(path) == rows
    list(read_rows(path))
    assert capsys.readouterr().err == (
        f"{path}: numbers with decimals are read as they are stored, without their format (50% is 0.5): 1, "
        "the first in row 5\n"
    )
    assert numbered(f"{path}#问答") == rows


def test_a_sheet_has_to_be_chosen_where_several_are_filled(tmp_path: Path) -> None:
    path = write_book(tmp_path / "a.xlsx", 一=[["a"], ["1"]], 二=[["a"], ["2"]], 三=[])
    assert error_of(path) == f"{path}: 2 sheets are filled, 一, 二; name one, as in '{path}#一'"
    assert error_of(f"{path}#四") == f"{path}#四: no sheet of this name; the book has 一, 二"
    assert list(read_rows(f"{path}#二")) == [(f"{path}#二:2", {"a": "2"})]
    assert fingerprint(f"{path}#一") != fingerprint(f"{path}#二")


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "q"}]
    table = {
        "question": ["NA", "001", None],
        "score": [0.5, None, 1.0],
        "day": [datetime.datetime(2024, 3, 1)] * 3,
        "messages": [messages] * 3,
        "history": ['[["q", "a"]]', None, "x"],
    }
    pandas.DataFrame(table).to_parquet(path, row_group_size=2)
    same = {"day": "2024-03-01", "messages": messages}
    assert numbered(path) == [
        (1, {"question": "NA", "score": 0.5, "history": [["q", "a"]], **same}),
        (2, {"question": "001", "score": None, "history": None, **same}),
        (3, {"question": None, "score": 1.0, "history": "x", **same}),
    ]


def test_how_a_file_is_read_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    names = ["a.csv", "a.tsv", "a.jsonl"]
    for name in names:
        (tmp_path / name).write_text("a\n1\n")
    assert len({fingerprint(str(tmp_path / name)) for name in names}) == 3
