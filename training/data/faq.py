"""A Markdown file of questions and answers: each `## question` is a row, and the text below it the answer.

# Services          a title, which ends the answer before it

Text that is below no question is in no row; its lines are counted.

## What is a deposit?     a row; the ## may have no space behind it

The answer, up to the next ## or #. ### headings and code blocks, whatever is in them, are part of it.
"""

import re
from collections.abc import Iterator

from training.common.console import say
from training.common.errors import UserError
from training.data.file_kinds import MARKDOWN, UTF8_BOM
from training.data.raw_row import RawRow
from training.data.text_encoding import text_encoding

# A heading of the first level or the second, without the marks that may close it.
HEADING = re.compile(r" {0,3}(#{1,2})(?!#)[ \t]*(.*?)(?:[ \t]+#+)?[ \t]*$")

# The line that opens a block of code; one of at least as many of the same marks closes it.
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")


def is_markdown(path: str) -> bool:
    """Whether a file is Markdown by its name."""
    return path.lower().endswith(MARKDOWN)


def read_faq(path: str) -> Iterator[RawRow]:
    """The questions of a file with their answers; the number of a row is the line of its heading.

    Says how many lines are below no question. Raises UserError for a file that cannot be read, and for one
    without a question.
    """
    rows = outside = 0
    question: RawRow | None = None
    fence = ""
    for number, line in enumerate(_lines(path), start=1):
        heading = None if fence else HEADING.fullmatch(line)
        if heading:
            if question:
                yield _with_answer(question)
            is_question = heading[1] == "##" and heading[2]
            question = RawRow(number, [heading[2]]) if is_question else None
            rows += question is not None
            continue
        fence = _fence_after(line, fence)
        if question:
            question.content.append(line)
        else:
            outside += bool(line.strip())
    if question:
        yield _with_answer(question)
    if not rows:
        raise UserError(f"{path}: no question; each is a heading of its own, as in: ## What is a deposit?")
    if outside:
        say(f"{path}: {outside:,} lines are below no ## heading, and in no row", on_stderr=True)


def _with_answer(question: RawRow) -> RawRow:
    """The row of a question and the lines below it; blank lines around the answer are not part of it."""
    asked, *lines = question.content
    while lines and not lines[0].strip():
        del lines[0]
    return RawRow(question.number, {"question": asked, "answer": "\n".join(lines).rstrip()})


def _fence_after(line: str, fence: str) -> str:
    """The marks of the block of code that is open after a line, or ""; `fence` are those before it."""
    marks = FENCE.fullmatch(line)
    if not fence:
        return marks[1] if marks and not (marks[1][0] == "`" and "`" in marks[2]) else ""
    closes = marks and marks[1].startswith(fence) and not marks[2].strip()
    return "" if closes else fence


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            encoding = text_encoding(file)
            file.seek(0)
            text = file.read().removeprefix(UTF8_BOM).decode(encoding)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if encoding != "utf-8":
        say(f"{path}: not UTF-8, and read as {encoding.upper()}", on_stderr=True)
    return re.split(r"\r\n|\n|\r", text)
