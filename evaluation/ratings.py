"""Rating sheets: blind tables for people, and the scores that they filled in.

评分员  编号  领域      类别  问题          回答        评分（1非常差 2较差 3一般 4较好 5非常好）
1       017   金融领域        什么是洗钱？  洗钱是指……
1       003   金融领域        什么是洗钱？  我不知道。

An item is one model's answer to one question. Its number reveals nothing; only key.json says which
model it was. Each rater gets the questions, and the answers to each, in an order of their own.

A text that a spreadsheet would take for a number, a date or a formula has an apostrophe before it. Where a
text was changed all the same, its item's number says what it was.
"""

import csv
import io
import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inference.resumable import write_output, write_result
from training.common.console import say
from training.common.errors import UserError, first_line

LOWEST, HIGHEST = 1, 5

RATER, ITEM, QUESTION, ANSWER = "评分员", "编号", "问题", "回答"
SCORE = "评分（1非常差 2较差 3一般 4较好 5非常好）"
SCORE_OF_WORD = {word: int(score) for score, word in re.findall(r"(\d)(\w+)", SCORE)}
COLUMNS = (RATER, ITEM, "领域", "类别", QUESTION, ANSWER, SCORE)

# The file that says which item is which; it is not for the raters.
KEY = "key.json"

# Encodings that spreadsheets write: the one of our sheets, "Unicode text", and "CSV" on a Chinese Windows, in
# which the characters that it lacks are lost.
ENCODINGS = ("utf-8-sig", "utf-16", "gb18030")

# How many problems of all the sheets together are shown.
PROBLEMS_SHOWN = 20

# What spreadsheets take for a formula (by its beginning), for a number, a date or a time, and for a truth.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}+"
NUMBER_OR_DATE = re.compile(
    rf"(?=.*\d)(?:[\d\s.,:/%()年月日时分秒$¥￥€-]|e[+-]?\d|[ap]m\b|{MONTH})+|true|false|真|假", re.IGNORECASE
)


class Item(NamedTuple):
    """What one model answered to one question."""

    domain: str
    category: str
    question: str
    model: str
    answer: str


def write_sheets(items: Sequence[Item], raters: int, seed: int, directory: Path) -> list[Path]:
    """Write a sheet for each rater, and last the key. Returns the paths of the sheets."""
    rng = random.Random(seed)
    numbers = list(range(1, len(items) + 1))
    rng.shuffle(numbers)
    width = len(str(len(items)))
    key = {f"{number:0{width}}": item for number, item in zip(numbers, items, strict=True)}
    paths = []
    for rater in range(1, raters + 1):
        paths.append(directory / sheet_name(rater))
        write_output(paths[-1], "\ufeff" + _sheet(rater, key, rng))
    contents = {"raters": raters, "items": {number: item._asdict() for number, item in key.items()}}
    write_result(directory / KEY, contents)
    return paths


def sheet_name(rater: int) -> str:
    return f"rater-{rater}.csv"


def _sheet(rater: int, key: dict[str, Item], rng: random.Random) -> str:
    questions = sorted({(item.domain, item.category, item.question) for item in key.values()})
    rng.shuffle(questions)
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    for question in questions:
        numbers = [number for number, item in key.items() if item[:3] == question]
        rng.shuffle(numbers)
        for number in numbers:
            item = key[number]
            texts = [item.domain, item.category, item.question, item.answer]
            writer.writerow([rater, number, *map(_kept_text, texts), ""])
    return lines.getvalue()


def _kept_text(text: str) -> str:
    """The text so that a spreadsheet leaves it as it is."""
    is_changed = text.startswith(FORMULA) or NUMBER_OR_DATE.fullmatch(text.strip())
    return f"'{text}" if is_changed else text


class Ratings(NamedTuple):
    """The items that were rated, and their scores.

    scores: (raters, items), whole numbers from LOWEST to HIGHEST.
    """

    items: list[Item]
    scores: list[list[int]]


def read_sheets(directory: Path) -> Ratings:
    """The scores of all the sheets. Texts that were changed are counted on the terminal.

    Raises a UserError that lists the cells to correct.
    """
    key, raters = _read_key(directory)
    problems: list[str] = []
    changed: list[str] = []
    scores = []
    for rater in range(1, raters + 1):
        path = directory / sheet_name(rater)
        found, wrong, changed_in = _read_sheet(path, rater, key)
        problems += [f"{path}{problem}" for problem in wrong]
        if changed_in:
            changed.append(
                f"{path}: the texts of {len(changed_in):,} items were changed; their numbers count"
            )
        scores.append([found.get(number, 0) for number in key])
    known = {directory / sheet_name(rater) for rater in range(1, raters + 1)}
    others = sorted(set(directory.glob("rater-*.csv")) - known)
    problems += [f"{path}: there are {raters} raters; take it away" for path in others]
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        last = [f"... and {more} more"] if more > 0 else []
        raise UserError(
            f"{directory}: {len(problems)} things to mend; nothing was counted",
            details=[*problems[:PROBLEMS_SHOWN], *last],
        )
    for line in changed:
        say(line, on_stderr=True)
    return Ratings(list(key.values()), scores)


def _read_key(directory: Path) -> tuple[dict[str, Item], int]:
    path = directory / KEY
    try:
        contents = json.loads(path.read_text("utf-8"))
        return {number: Item(**item) for number, item in contents["items"].items()}, contents["raters"]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --sheets names what `sheets` made") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not what `sheets` wrote ({first_line(error)}); put that back") from None


def _read_sheet(path: Path, rater: int, key: dict[str, Item]) -> tuple[dict[str, int], list[str], list[str]]:
    """(the scores by the number of their item, the problems, the numbers of items whose texts were changed).

    A problem's text continues that of the path.
    """
    try:
        header, rows = _table(path.read_bytes())
    except OSError as error:
        return {}, [f": {error.strerror}"], []
    missing_columns = [name for name in COLUMNS if name not in header]
    if missing_columns:
        table = "table" if len(missing_columns) == len(COLUMNS) else "column"
        names = f"with the columns {', '.join(COLUMNS)}" if table == "table" else ", ".join(missing_columns)
        return {}, [f": no {table} {names}; save it as CSV with all its columns"], []
    column = {name: header.index(name) for name in COLUMNS}
    words_of = {
        QUESTION: {_words(item.question) for item in key.values()} - {""},
        ANSWER: {_words(item.answer) for item in key.values()} - {""},
    }

    scores: dict[str, int] = {}
    seen: dict[str, int] = {}
    wrong, changed = [], []
    for line, cells in enumerate(rows, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        cells += [""] * (len(header) - len(cells))
        row = {name: cells[index].strip() for name, index in column.items()}
        at = {name: f":{_column_name(index)}{line}" for name, index in column.items()}
        number = _item_number(row[ITEM], key)
        if number is None:
            wrong.append(f"{at[ITEM]}: no item {row[ITEM]!r} was given out")
            continue
        if number in seen:
            wrong.append(f"{at[ITEM]}: item {number} is in row {seen[number]} already; each is rated once")
            continue
        seen[number] = line
        own = {QUESTION: key[number].question, ANSWER: key[number].answer}
        changed_columns = [name for name, text in own.items() if _words(row[name]) != _words(text)]
        mixed_up = next((name for name in changed_columns if _words(row[name]) in words_of[name]), None)
        if _whole_number(row[RATER]) != rater:
            wrong.append(f"{at[RATER]}: from the sheet of rater {row[RATER] or 'nobody'}, not of {rater}")
        elif mixed_up:
            wrong.append(
                f"{at[mixed_up]}: not the text of item {number}: rows were mixed up; score a fresh copy of "
                "the sheet"
            )
        elif (score := _score(row[SCORE])) is None:
            what = repr(row[SCORE]) if row[SCORE] else "no score"
            wrong.append(f"{at[SCORE]}: {what} for item {number}; a whole number from {LOWEST} to {HIGHEST}")
        else:
            scores[number] = score
            if changed_columns:
                changed.append(number)
    missing = [number for number in key if number not in seen]
    if missing:
        wrong.append(f": no row for item {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}")
    return scores, wrong, changed


def _table(data: bytes) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table, read so that it has the most of COLUMNS."""
    best: tuple[list[str], list[list[str]]] = ([], [])
    for encoding in ENCODINGS:
        try:
            text = data.decode(encoding, errors="replace" if encoding == ENCODINGS[-1] else "strict")
        except UnicodeError:
            continue
        for delimiter in (",", ";", "\t"):
            try:
                lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
            except csv.Error:
                continue
            header = [cell.strip() for cell in lines[0]] if lines else []
            if len(set(COLUMNS) & set(header)) > len(set(COLUMNS) & set(best[0])):
                best = header, lines[1:]
    return best


def _item_number(text: str, key: dict[str, Item]) -> str | None:
    """The number of an item as the key has it; a spreadsheet removes its leading zeros."""
    width = len(next(iter(key)))
    number = _whole_number(text)
    padded = f"{number:0{width}}" if number is not None else ""
    return padded if padded in key else None


def _whole_number(text: str) -> int | None:
    """The whole number that a cell shows, as 4, ４ or 4.0; None for anything else."""
    found = re.fullmatch(r"(\d+)(?:\.0*)?", unicodedata.normalize("NFKC", text).strip())
    return int(found[1]) if found else None


def _score(text: str) -> int | None:
    """The score that a cell shows as 4, 4.0, ４, 4分, 较好 or 4 较好; None for anything else."""
    text = unicodedata.normalize("NFKC", text)
    parts = re.fullmatch(rf"([\d.]*)\s*分?\s*\(?({'|'.join(SCORE_OF_WORD)})?\)?", text.strip())
    if not parts:
        return None
    scores = {SCORE_OF_WORD[parts[2]]} if parts[2] else set()
    if parts[1]:
        scores.add(_whole_number(parts[1]))
    score = scores.pop() if len(scores) == 1 else None
    return score if score in range(LOWEST, HIGHEST + 1) else None


def _words(text: str) -> str:
    """A text without what a spreadsheet changes most: case, digits, quotes, line ends."""
    return re.sub(r"[\W\d_]+", "", unicodedata.normalize("NFKC", text)).casefold()


def _column_name(index: int) -> str:
    """What a spreadsheet calls a column: A, B, ... Z, AA, ..."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
