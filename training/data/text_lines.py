"""The lines of a text file."""

import io
from collections.abc import Iterator

from training.common.console import say
from training.common.errors import UserError
from training.data.pipes import path_to_open
from training.data.text_encoding import text_encoding


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines of a text file that are not blank, the first line of all being 1.

    Raises UserError for a file that is missing, or neither UTF-8 nor GB18030.
    """
    try:
        with open(path_to_open(path), "rb") as file:
            encoding = text_encoding(file)
            if encoding != "utf-8":
                say(f"{path}: not UTF-8, and read as {encoding.upper()}", on_stderr=True)
            file.seek(0)
            text = io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, newline="\n")
            for number, line in enumerate(text, start=1):
                if not line.isspace():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
