"""A data file, or a data set on the hub, as a stream of (place, row)."""

import contextlib
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from training.common.console import say
from training.common.errors import UserError, first_line
from training.data.file_kinds import (
    START_BYTES,
    UTF8_BOM,
    NamedFile,
    check_compressed,
    check_content,
    has_rows_by_name,
    named_file,
)
from training.data.hub_rows import HUB_NAME, load_hub_rows
from training.data.json_rows import read_json
from training.data.pipes import is_pipe, path_to_open
from training.data.raw_row import Broken, NotRead, RawRow, parse
from training.data.sources import expand_path
from training.data.tables import read_book, read_csv, read_parquet
from training.data.text_encoding import text_encoding
from training.data.values import plain_value

__all__ = ["Broken", "NotRead", "RawRow", "RawRows", "fingerprint", "parse", "read_raw_rows", "read_rows"]

DIGEST_BYTES = 16

BLOCK_BYTES = 1 << 20


def read_rows(data_path: str) -> Iterator[tuple[str, Any]]:
    """The rows of a file or data set, or of all files of a folder or a pattern.

    Yields (place, row): place is `path:number`, as `RawRow` numbers the rows of its file, and row whatever
    JSON value stands there.

    Raises UserError with the place for a path that does not exist and for what cannot be read.
    """
    return _parse_rows([(path, read_raw_rows(path)) for path in expand_path(data_path)])


def _parse_rows(files: list[tuple[str, "RawRows"]]) -> Iterator[tuple[str, Any]]:
    for path, raw_rows in files:
        for raw in raw_rows:
            place = f"{path}:{raw.number}"
            try:
                yield place, parse(raw)
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
        raw_rows.say_remarks()


class RawRows(Iterator[RawRow]):
    """The rows of a data file or data set, and its fingerprint, which the same reading gives.

    has_bom: whether the file starts with a byte order mark, which is skipped; known with the first row.
    remarks: how the file is read where one might expect otherwise, a line each; known after the last row.
    """

    def __init__(self, data_path: str) -> None:
        self.data_path = data_path
        self.has_bom = False
        self.remarks: list[str] = []
        named = _find_file(data_path)
        self._hub_rows = None if named else load_hub_rows(data_path)
        self._digest = _new_digest(named)
        self._rows = self._read_file(named) if named else self._read_hub()

    def say_remarks(self) -> None:
        """Print the remarks, for a command that stores no findings about the file."""
        for remark in self.remarks:
            say(f"{self.data_path}: {remark}", on_stderr=True)

    def __next__(self) -> RawRow:
        return next(self._rows)

    @property
    def fingerprint(self) -> str:
        """The `fingerprint` of what was read, known after the last row, even if the file changes later."""
        if self._hub_rows is not None:
            return _hash_of_files(_files_of(self._hub_rows))
        return self._digest.hexdigest()

    def _read_hub(self) -> Iterator[RawRow]:
        assert self._hub_rows is not None
        return (RawRow(number, plain_value(row)) for number, row in enumerate(self._hub_rows, start=1))

    def _read_file(self, named: NamedFile) -> Iterator[RawRow]:
        with _open_file(named.path) as file:
            start = file.read(START_BYTES)
            if named.is_compressed:
                check_compressed(self.data_path, start)
            else:
                check_content(self.data_path, named.kind, file, start)
            file.seek(0)
            hashed = _HashedFile(file, self._digest)
            if named.kind == "xlsx":
                yield from read_book(hashed.read(), self.data_path, named.sheet, self.remarks)
            elif named.kind == "parquet":
                yield from read_parquet(file, self.data_path)
                file.seek(0)
            else:
                yield from self._read_text(named, file, hashed)
            hashed.read_on()

    def _read_text(self, named: NamedFile, file: BinaryIO, hashed: "_HashedFile") -> Iterator[RawRow]:
        """The rows of a file of text, which `file` and `hashed` are at the beginning of."""
        encoding = "utf-8"
        with _broken_gzip_refused(self.data_path):
            if named.kind != "json":
                encoding = self._encoding(_unpacked(file, named))
                file.seek(0)
            text = io.BufferedReader(_unpacked(hashed, named), BLOCK_BYTES)
            start = text.peek(START_BYTES)[:START_BYTES]
            if named.is_compressed:
                check_content(self.data_path, named.kind, file, start)
            self.has_bom = start.startswith(UTF8_BOM)
            if self.has_bom:
                text.read(len(UTF8_BOM))
            if named.kind == "json":
                yield from read_json(text, self.data_path)
            else:
                lines = io.TextIOWrapper(text, encoding, newline="")
                yield from read_csv(lines, self.data_path, "\t" if named.kind == "tsv" else "")

    def _encoding(self, text: BinaryIO) -> str:
        try:
            encoding = text_encoding(text)
        except ValueError as error:
            raise UserError(f"{self.data_path}: {error}") from None
        if encoding != "utf-8":
            self.remarks.append(f"not UTF-8, and read as {encoding.upper()}")
        return encoding


def read_raw_rows(data_path: str) -> RawRows:
    """The rows of one file or data set before they are parsed, so that one bad row need not be the end.

    JSON Lines and CSV, compressed or not, and Parquet are read as a stream; other JSON and a book as a whole.
    Raises UserError for a path that does not exist, and for a file of a kind that has no rows.
    """
    return RawRows(data_path)


def fingerprint(data_path: str) -> str:
    """A hash of the bytes of a file, with what of it is read and how where that is not JSON; of the files
    that a data set of the hub was downloaded to; or of all files of a folder or a pattern.

    Raises UserError for a path that does not exist or cannot be read.
    """
    hashes = [_fingerprint(path) for path in expand_path(data_path)]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.blake2b(" ".join(hashes).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _fingerprint(data_path: str) -> str:
    named = _find_file(data_path)
    if named is None:
        return _hash_of_files(_files_of(load_hub_rows(data_path)))
    return _hash_of_files([named.path], _new_digest(named))


def _new_digest(named: NamedFile | None) -> Any:
    """The digest of a file before its bytes. As JSON, the bytes alone say what the rows are."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if named and named.kind != "json":
        digest.update(f"{named.kind}#{named.sheet or ''}#".encode())
    return digest


def _files_of(hub_rows: Any) -> list[str]:
    """The files that a data set of the hub was downloaded to."""
    paths = [file["filename"] for file in hub_rows.cache_files]
    assert paths, "load_dataset keeps its rows in files"
    return paths


def _hash_of_files(paths: list[str], digest: Any = None) -> str:
    digest = digest or _new_digest(None)
    for path in paths:
        with _open_file(path) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _find_file(data_path: str) -> NamedFile | None:
    """The file of a --data-path, or None for a name on the hub. Raises UserError where it can be neither."""
    named = named_file(data_path)
    if os.path.isfile(named.path) or is_pipe(named.path):
        return named
    if os.path.isdir(data_path):
        raise UserError(f"{data_path}: a directory; name a file in it, or a data set on the hub")
    before_sheet = data_path.rpartition("#")[0]
    if os.path.isfile(before_sheet):
        raise UserError(f"{data_path}: only an Excel book (.xlsx) has sheets; leave out what follows the #")
    if not HUB_NAME.fullmatch(data_path) or has_rows_by_name(data_path):
        raise UserError(f"{data_path}: no such file")
    return None


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[BinaryIO]:
    """Open the file. Raises UserError for what the system refuses while it is open."""
    try:
        with open(path_to_open(path), "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _broken_gzip_refused(path: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: the compressed file is cut off or broken ({first_line(error)}); fetch it again"
        ) from None


def _unpacked(file: Any, named: NamedFile) -> Any:
    return gzip.GzipFile(fileobj=file) if named.is_compressed else file


class _HashedFile(io.RawIOBase):
    """A file that is read from its beginning to its end, and whose bytes go into a digest."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read(len(buffer))
        self._digest.update(block)
        buffer[: len(block)] = block
        return len(block)

    def read_on(self) -> None:
        """Read what is left, so that the digest is of the whole file."""
        while block := self._file.read(BLOCK_BYTES):
            self._digest.update(block)
