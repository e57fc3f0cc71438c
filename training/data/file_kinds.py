"""What kind of file a data file is: by its name, which says how it is read, and by how its content begins."""

import os
import re
import zipfile
from typing import BinaryIO, Literal, NamedTuple

from training.common.errors import UserError
from training.common.hub import POINTER_START

Kind = Literal["json", "csv", "tsv", "parquet", "xlsx"]

# A file of any other name is read as JSON.
KIND_OF_SUFFIX: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
COMPRESSED = ".gz"
MARKDOWN = (".md", ".markdown")

# FILE.xlsx#SHEET
SHEET_OF_BOOK = re.compile(r"(.+?\.xlsx)#(.*)", re.IGNORECASE | re.DOTALL)

# The bytes of a file's beginning that are looked at.
START_BYTES = 1024

UTF8_BOM = b"\xef\xbb\xbf"

# How files of other kinds begin, what they are, and what helps.
GZIP = b"\x1f\x8b"
PARQUET = "a Parquet file; call it by a name that ends in .parquet"
BEGINNINGS = (
    (GZIP, "compressed by gzip; call it by a name that ends in .gz, such as rows.jsonl.gz"),
    (b"PAR1", PARQUET),
    (b"\xd0\xcf\x11\xe0", "an old or encrypted Office file; save it as .xlsx without a password, or as .csv"),
    (b"%PDF", "a PDF, which has no rows; write them as .xlsx, .csv or .jsonl"),
    (b"{\\rtf", "an RTF document, which has no rows; write them as .xlsx, .csv or .jsonl"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"SQLite format 3\x00", "an SQLite database; export its rows as .csv"),
    (b"ARROW1", "an Arrow file; save it as .parquet"),
    (b"\xff\xfe", "text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16; save it as UTF-8"),
    (POINTER_START, "a git-lfs pointer, and not the file that it stands for; run `git lfs pull`"),
    (b"<!doctype html", "a web page; was a page downloaded in place of the file?"),
    (b"<html", "a web page; was a page downloaded in place of the file?"),
)

# What a zip is, by a name that is in it.
EXCEL = "an Excel book; call it by a name that ends in .xlsx"
ZIPS = (
    ("xl/workbook.xml", EXCEL),
    ("xl/workbook.bin", "a binary Excel book; save it as .xlsx"),
    ("word/document.xml", "a Word document; write its questions and answers as .xlsx, .csv or Markdown"),
    ("ppt/presentation.xml", "a PowerPoint file, which has no rows; write them as .xlsx, .csv or .jsonl"),
    ("content.xml", "an OpenDocument file; save it as .xlsx or .csv"),
)


class NamedFile(NamedTuple):
    """A file, how its name says that it is read, and which sheet of a book is read."""

    path: str
    kind: Kind
    is_compressed: bool = False
    sheet: str | None = None


def named_file(data_path: str) -> NamedFile:
    """The file of a --data-path, FILE or FILE.xlsx#SHEET, whether it exists or not.

    Raises UserError for a kind of file whose rows another command makes, and for one to be unpacked first.
    """
    in_book = None if os.path.exists(data_path) else SHEET_OF_BOOK.fullmatch(data_path)
    if in_book:
        return NamedFile(in_book[1], "xlsx", sheet=in_book[2])
    is_compressed = data_path.lower().endswith(COMPRESSED)
    suffix = os.path.splitext(data_path[: -len(COMPRESSED)] if is_compressed else data_path)[1].lower()
    if suffix in MARKDOWN:
        raise UserError(
            f"{data_path}: Markdown; `python -m training.convert --data-path {data_path} --to messages "
            "--output ROWS.jsonl` makes a row of each of its ## headings"
        )
    kind = KIND_OF_SUFFIX.get(suffix, "json")
    if is_compressed and kind in ("parquet", "xlsx"):
        raise UserError(f"{data_path}: {suffix} is not read through .gz; unpack it first (gunzip)")
    return NamedFile(data_path, kind, is_compressed)


def has_rows_by_name(path: str) -> bool:
    """Whether the ends of a file's name are of a kind that is read."""
    name = path.lower().removesuffix(COMPRESSED)
    return os.path.splitext(name)[1] in KIND_OF_SUFFIX


def check_compressed(path: str, start: bytes) -> None:
    """Raise UserError unless a file that begins with `start` is compressed by gzip, as its name says."""
    if not start.startswith(GZIP):
        raise UserError(f"{path}: not compressed by gzip, as its name says; call it by its right name")


def check_content(path: str, kind: Kind, file: BinaryIO, start: bytes) -> None:
    """Raise UserError where the content of a file is of another kind than its name says.

    path: its name in the message. kind: what the name says. start: the first START_BYTES bytes of `file`, or
    of what is compressed in it.
    """
    is_zip = start.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    found = _zip_kind(file) if is_zip else _kind_of_text(start)
    if found and found == {"xlsx": EXCEL, "parquet": PARQUET}.get(kind):
        return
    if found:
        raise UserError(f"{path}: {found}")
    if kind in ("xlsx", "parquet"):
        name = "a Parquet file" if kind == "parquet" else "an Excel book"
        what = "text; call it by its right name, such as .csv or .jsonl" if start else "empty"
        raise UserError(f"{path}: not {name}, as its name says, but {what}")


def _kind_of_text(start: bytes) -> str:
    """What a file is that begins so, and what to do; "" for text."""
    start = start.removeprefix(UTF8_BOM).lstrip()
    for beginning, what in BEGINNINGS:
        if start.startswith(beginning) or start[: len(beginning)].lower() == beginning:
            return what
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if b"\0" in start and not start.startswith((b"{", b"[")):
        return "a binary file of a kind that has no rows; write them as .xlsx, .csv, .parquet or .jsonl"
    return ""


def _zip_kind(file: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return "a zip archive or an Office file that is cut off or broken; fetch it again"
    return next((what for name, what in ZIPS if name in names), "a zip archive; unpack it first")
