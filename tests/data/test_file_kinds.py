"""A file of the wrong kind, or a broken one, is one line that says what it is."""

import gzip
import io
import json
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import openpyxl
import pandas
import pytest

from training.common.errors import UserError
from training.data.reader import fingerprint, read_raw_rows, read_rows

ROWS = b'{"a": 1}\n{"a": 2}\n'


def zip_with(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, "x")
    return data.getvalue()


def tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return data.getvalue()


def book() -> bytes:
    data = io.BytesIO()
    openpyxl.Workbook().save(data)
    return data.getvalue()


def parquet() -> bytes:
    return pandas.DataFrame({"a": ["1"]}).to_parquet()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table t (a)")
    return connection.serialize()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", gzip.compress(ROWS, mtime=0), "compressed by gzip; call it by a name that ends in .gz"),
        ("a.jsonl.gz", ROWS, "not compressed by gzip"),
        ("a.jsonl.gz", gzip.compress(ROWS, mtime=0)[:-12], "the compressed file is cut off or broken"),
        (
            "a.jsonl.gz",
            gzip.compress(ROWS, mtime=0)[:10] + b"x" * 99,
            "the compressed file is cut off or broken",
        ),
        ("a.csv.gz", gzip.compress(b"a\n1\n", mtime=0)[:-12], "the compressed file is cut off or broken"),
        ("a.jsonl.gz", gzip.compress(tar(), mtime=0), "a tar archive"),
        ("a.csv", book(), "an Excel book; call it by a name that ends in .xlsx"),
        ("a.xlsx", book()[:-99], "a zip archive or an Office file that is cut off or broken"),
        ("a.xlsx", zip_with("xl/workbook.xml"), "an Excel book that cannot be read"),
        ("a.xlsx", b"a,b\n", "not an Excel book, as its name says, but text"),
        ("a.xlsx", b"", "not an Excel book, as its name says, but empty"),
        ("a.xlsx", parquet(), "a Parquet file"),
        ("a.xlsx.gz", gzip.compress(book(), mtime=0), ".xlsx is not read through .gz; unpack it first"),
        (
            "a.parquet.gz",
            gzip.compress(parquet(), mtime=0),
            ".parquet is not read through .gz; unpack it first",
        ),
        ("a.parquet", book(), "an Excel book"),
        ("a.parquet", parquet()[:-9], "a Parquet file that is cut off or broken"),
        ("a.json", parquet(), "a Parquet file; call it by a name that ends in .parquet"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "an old or encrypted Office file"),
        ("a.docx", zip_with("word/document.xml"), "a Word document"),
        ("a.zip", zip_with("rows.jsonl"), "a zip archive; unpack it first"),
        ("a.tar", tar(), "a tar archive"),
        ("a.db", database(), "an SQLite database"),
        ("a.pdf", b"%PDF-1.7\n", "a PDF"),
        ("a.jsonl", "\ufeff{}".encode("utf-16-le"), "text in UTF-16"),
        ("a.jsonl", b"\n<!DOCTYPE html><html>", "a web page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x", "a git-lfs pointer"),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{}", "a binary file"),
        ("a.md", b"## q\n\na\n", "Markdown; `python -m training.convert --data-path "),
    ],
)
def test_what_a_file_is_is_said_in_one_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(read_rows(str(path)))
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [ROWS, json.dumps([{"a": 1}, {"a": 2}]).encode(), b"\xef\xbb\xbf" + ROWS])
def test_a_compressed_file_gives_its_rows(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(data[:5], mtime=0) + gzip.compress(data[5:], mtime=0))
    assert list(read_rows(str(path))) == [(f"{path}:1", {"a": 1}), (f"{path}:2", {"a": 2})]
    raw_rows = read_raw_rows(str(path))
    list(raw_rows)
    assert raw_rows.fingerprint == fingerprint(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.csv#Sheet1", "only an Excel book"),
        ("no.xlsx#Sheet1", "no such file"),
    ],
)
def test_a_name_that_can_be_nothing_is_one_line(tmp_path: Path, monkeypatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=f"^{name}: {message}"):
        read_rows(name)
