"""The encoding of a text file that people made: UTF-8, or GB18030 as Excel writes it on a Chinese system."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

BLOCK_BYTES = 1 << 20

# From how many characters it is judged whether a text that may be GB18030 is.
SAMPLE = 10_000


def text_encoding(file: BinaryIO) -> str:
    """ "utf-8" or "gb18030", whichever all of `file` is, read from its beginning to its end.

    Raises ValueError, which names the line, where it is neither.
    """
    try:
        for _ in _decoded(file, "utf-8"):
            pass
        return "utf-8"
    except UnicodeError as error:
        line = str(error)
    file.seek(0)
    sample = ""
    try:
        for text in _decoded(file, "gb18030"):
            if len(sample) < SAMPLE:
                sample += "".join(character for character in text if not character.isascii())
    except UnicodeError as error:
        raise ValueError(f"neither UTF-8 ({line}) nor GB18030 ({error}); save the file as UTF-8") from None
    # The accents of Western languages may be GB18030 by their bytes, but of characters that nobody writes.
    if 2 * sum(map(_is_usual, sample)) < len(sample):
        raise ValueError(f"not UTF-8 ({line}), and hardly GB18030; save the file as UTF-8")
    return "gb18030"


def _decoded(file: BinaryIO, encoding: str) -> Iterator[str]:
    """The text, block by block. Raises UnicodeError with the line of the first byte that is wrong."""
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 1
    block = b"-"
    try:
        while block:
            block = file.read(BLOCK_BYTES)
            yield decoder.decode(block, final=not block)
            lines += block.count(b"\n")
    except UnicodeDecodeError as error:
        raise UnicodeError(f"line {lines + error.object.count(bytes([10]), 0, error.start)}") from None


def _is_usual(character: str) -> bool:
    """Whether a character is one of the 7,445 of GB2312."""
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True
