"""Findings: what a data file holds and what is wrong with it, counted while its rows are read."""

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.consts import BREAKER
from training.data.duplicates import RowHashes, conflicts, duplicates
from training.text.conversation import Conversation, ReadRow, domain_of
from training.text.encoding import Encoded

# Number of errors that are kept with their text; the rest are only counted.
ERRORS_KEPT = 100

# Number of keys, and of reasons why rows cannot be used, that are counted one by one.
KEYS_KEPT = 100
MORE_KEYS = "others"
MORE_REASONS = "other problems (training.check --all names them)"

# Number of lines that are kept of everything else that is found, unless all are wanted.
LINES_KEPT = 3

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)

# Any text that looks like a control token of ours or of another model. The tokenizer's own are added to it.
LOOKALIKE = r"<[|｜][^<>|｜\n]{1,30}[|｜]>"

# Brackets at the end of a text or of a part of it; they may hold others.
DETAILS = re.compile(r" \((?:[^()]|\([^()]*\))*\)(?=;|$)")

# What differs from row to row in problems of one kind: indices, and values of the row.
VALUES = re.compile(r"(?<=\[)\d+(?=\])|'[^']*'|(?<= is )(?:\"[^\"]*\"|-?\d[^; ]*)")

# What may be wrong with a row that can be used, and why rows that are no mistake are left out.
NOTES = {
    "left_out": "LEFT OUT, feedback that calls the answer a bad one",
    "dropped": "DROPPED, no answer to learn within --max-length",
    "cut": "cut after the last turn within --max-length",
    "open": "ends with the human, whose last message is left off",
    "results": "ends with what a tool returned; the turn, which has no answer, is left off",
    "context": "with answers that are read and not learnt",
    "system": "with a second system text, which is not used",
    "prefix": "the beginning of another row, so that these turns are there twice",
    "duplicate": "the same as an earlier row",
    "conflict": "the same prompt as another row, but another answer",
    "lookalike": "a text that looks like a control token (it stays text)",
    "breaker": "U+E000 in a text (it is removed)",
    "nul": "NUL in a text",
    "bom": "a byte order mark (at the start of the file it is skipped; in a text it stays)",
}


@dataclass
class NotedRows:
    """How many rows something was found in, and the first of their lines.

    Here and in all findings, the line of a row is the `number` of its `RawRow`, which says where it stands.
    Each entry of `lines` is a list: of one line, or of the lines of rows that belong together.
    """

    count: int = 0
    lines: list[list[int]] = field(default_factory=list)

    def add(self, count: int, lines: Iterable[list[int]], most: int = LINES_KEPT) -> None:
        """Count further rows, and keep their lines as long as there are no more than `most`."""
        self.count += count
        if len(self.lines) < most:
            self.lines += list(lines)[: most - len(self.lines)]


class Unread:
    """What was not read of usable rows: last messages of the human, system texts that others replace, keys.

    What was not read of two parts of a file adds up by `+=`, in the file's order. most_lines: how many lines
    are kept of each.
    """

    def __init__(self, most_lines: int = LINES_KEPT) -> None:
        self._most_lines = most_lines
        self._notes: dict[str, NotedRows] = {}
        self._not_learnt: dict[str, NotedRows] = {}
        self._bookkeeping: Counter[str] = Counter()

    def add(self, line: int, read: ReadRow) -> None:
        """Note what was not read of the row on a line."""
        for kind, found in (
            ("open", read.ends_with_human),
            ("results", read.ends_with_results),
            ("system", read.other_system),
        ):
            if found:
                _note(self._notes, kind, 1, [[line]], self._most_lines)
        for key in read.not_learnt:
            _note(self._not_learnt, key, 1, [[line]], self._most_lines)
        self._bookkeeping.update(read.harmless)

    def __iadd__(self, later: "Unread") -> "Unread":
        _add_up(self._notes, later._notes, self._most_lines)
        _add_up(self._not_learnt, later._not_learnt, self._most_lines)
        self._bookkeeping.update(later._bookkeeping)
        return self

    def summary(self) -> dict[str, Any]:
        """The "notes", "not_learnt" and "bookkeeping" of the summary of `Findings`."""
        return {
            "notes": {kind: vars(noted) for kind, noted in self._notes.items()},
            "not_learnt": {key: vars(noted) for key, noted in self._not_learnt.items()},
            "bookkeeping": dict(self._bookkeeping.most_common()),
        }


class Findings:
    """What the rows of a file hold, and what is wrong with them, counted row by row for `summary`.

    The findings of two parts of a file add up by `+=`, in the file's order. most_lines: how many lines are
    kept of everything that is found.
    """

    def __init__(self, max_length: int, special_tokens: Iterable[str], most_lines: int = LINES_KEPT) -> None:
        self._max_length = max_length
        self._most_lines = most_lines
        self._most_errors = max(ERRORS_KEPT, most_lines)
        names = sorted(map(re.escape, special_tokens), key=len, reverse=True)
        self._lookalike = re.compile("|".join([LOOKALIKE, *names]), re.IGNORECASE)
        self._rows = 0
        self._ends_at: tuple[int, str] | None = None
        self._remarks: list[str] = []
        self._errors: list[tuple[int, str]] = []
        self._unusable: dict[str, NotedRows] = {}
        self._notes = {kind: NotedRows() for kind in NOTES}
        self._unread = Unread(most_lines)
        self._formats: Counter[str] = Counter()
        self._domains: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._kept = Counter(rows=0, tokens=0, learnt=0)
        # One entry for each usable row.
        self._lines = array("q")
        self._lengths = array("q")
        self._answer_lengths = array("q")  # those of all supervised answers
        self._row_hashes = array("Q")
        self._beginnings = array("Q")  # those of all usable rows
        # One entry for each answer of a usable row.
        self._lines_of_answers = array("q")
        self._before_answers = array("Q")
        self._answers = array("Q")

    def add_unusable(self, line: int, problem: str, *, ends_file: bool = False) -> None:
        """Note a row that cannot be used; `ends_file` where the rows after it cannot be read either."""
        self._rows += 1
        if ends_file:
            self._ends_at = (line, problem)
        if len(self._errors) < self._most_errors:
            self._errors.append((line, problem))
        _note(self._unusable, reason_of(problem), 1, [[line]], self._most_lines, MORE_REASONS)

    def add_left_out(self, line: int) -> None:
        """Note a row that training leaves out, though nothing is wrong with it."""
        self._rows += 1
        _note(self._notes, "left_out", 1, [[line]], self._most_lines)

    def add_usable(
        self,
        line: int,
        read: ReadRow,
        conversation: Conversation,
        hashes: RowHashes,
        encoded: Encoded,
        kept_length: int,
    ) -> None:
        """Note a row that can be used.

        read: the row as its format reads it. conversation: what training sees of it, before it is cut.
        kept_length: how many tokens of the row training sees; 0 for a row that is dropped.
        """
        length, answers = encoded.turn_ends[-1], encoded.answers
        self._rows += 1
        self._formats[read.row_format] += 1
        self._domains[domain_of(conversation)] += 1
        self._turns[len(conversation.turns)] += 1
        self._lengths.append(length)
        self._lines.append(line)
        self._answer_lengths.extend(end - start for start, end in answers)
        if kept_length:
            self._kept["rows"] += 1
            self._kept["tokens"] += kept_length
            self._kept["learnt"] += sum(end - start for start, end in answers if end <= kept_length)
        self._row_hashes.append(hashes.row)
        self._beginnings.extend(hashes.beginnings)
        self._lines_of_answers.extend([line] * len(hashes.answers))
        self._before_answers.extend(hashes.before_answers)
        self._answers.extend(hashes.answers)

        if kept_length < length:
            _note(self._notes, "cut" if kept_length else "dropped", 1, [[line]], self._most_lines)
        texts = "\n".join(conversation.texts())
        for kind, found in (
            ("context", any(is_context for turn in conversation.turns for _, is_context in turn.answers())),
            ("lookalike", self._lookalike.search(texts)),
            ("breaker", BREAKER in texts),
            ("nul", "\0" in texts),
            ("bom", "\ufeff" in texts),
        ):
            if found:
                _note(self._notes, kind, 1, [[line]], self._most_lines)
        self._unread.add(line, read)

    def add_bom(self) -> None:
        """Note a byte order mark at the start of the file."""
        _note(self._notes, "bom", 1, [[1]], self._most_lines)

    def add_remarks(self, remarks: Iterable[str]) -> None:
        """Note how the file is read, as in `RawRows`."""
        self._remarks += remarks

    def __iadd__(self, later: "Findings") -> "Findings":
        self._rows += later._rows
        self._remarks += later._remarks
        self._ends_at = self._ends_at or later._ends_at
        self._errors += later._errors[: self._most_errors - len(self._errors)]
        _add_up(self._unusable, later._unusable, self._most_lines, MORE_REASONS)
        _add_up(self._notes, later._notes, self._most_lines)
        self._unread += later._unread
        for name in ("_formats", "_domains", "_turns", "_kept"):
            getattr(self, name).update(getattr(later, name))
        for name in (
            "_lines",
            "_lengths",
            "_answer_lengths",
            "_row_hashes",
            "_beginnings",
            "_lines_of_answers",
            "_before_answers",
            "_answers",
        ):
            getattr(self, name).extend(getattr(later, name))
        return self

    def summary(self) -> dict[str, Any]:
        """All findings, in JSON's types: the check prints them, the cache stores them, the log quotes them.

        rows                             rows in the file
        ends_at                          [line, problem] where a JSON array could not be read on, or null
        remarks                          how the file is read where one might expect otherwise, a line each
        unusable                         {reason: {"count", "lines"}}
        errors                           [[line, problem]] of the first ERRORS_KEPT unusable rows
        notes                            {kind of NOTES: {"count", "lines"}}
        not_learnt                       {key that has content and is not read: {"count", "lines"}}
        bookkeeping                      {key that is not read and says nothing to learn: rows}
        formats, domains, turns          {name, prefix or number: usable rows}
        max_length                       longest row in training, in tokens
        tokens, learnt                   tokens of the usable rows, and how many of them are supervised
        quantiles, histogram             {percent: tokens of a row}, {longest: rows}
        answer_quantiles,                the same of the answers that are learnt, by their supervised tokens
        answer_histogram
        kept                             {"rows", "tokens", "learnt"} that training sees

        "lines" is as in `NotedRows`.
        """
        lengths, answer_lengths = map(np.asarray, (self._lengths, self._answer_lengths))
        lines, lines_of_answers = map(np.asarray, (self._lines, self._lines_of_answers))
        rows, before, answers = map(np.asarray, (self._row_hashes, self._before_answers, self._answers))
        equal_groups = [group.tolist() for group in duplicates(rows, lines)]
        conflict_groups = [group.tolist() for group in conflicts(before, answers, lines_of_answers)]
        is_beginning = np.isin(rows, np.asarray(self._beginnings))
        notes = {
            **self._notes,
            "prefix": self._noted([[line] for line in lines[is_beginning].tolist()], int(is_beginning.sum())),
            "duplicate": self._noted(equal_groups, sum(len(group) - 1 for group in equal_groups)),
            "conflict": self._noted(
                conflict_groups, len({line for group in conflict_groups for line in group})
            ),
        }
        unread = self._unread.summary()
        return {
            "rows": self._rows,
            "ends_at": self._ends_at and list(self._ends_at),
            "remarks": self._remarks,
            "unusable": {reason: vars(noted) for reason, noted in self._unusable.items()},
            "errors": [list(error) for error in self._errors],
            **unread,
            "notes": unread["notes"] | {kind: vars(noted) for kind, noted in notes.items() if noted.count},
            "formats": dict(self._formats.most_common()),
            "domains": dict(self._domains.most_common()),
            "turns": {str(turns): rows for turns, rows in sorted(self._turns.items())},
            "max_length": self._max_length,
            "tokens": int(lengths.sum()),
            "learnt": int(answer_lengths.sum()),
            "quantiles": _quantiles(lengths),
            "histogram": dict(_histogram(lengths)),
            "answer_quantiles": _quantiles(answer_lengths),
            "answer_histogram": dict(_histogram(answer_lengths)),
            "kept": dict(self._kept),
        }

    def _noted(self, groups: list[list[int]], count: int) -> NotedRows:
        most = self._most_lines
        return NotedRows(count, [group[:most] for group in sorted(groups)[:most]])


def _note(
    mine: dict[str, NotedRows],
    kind: str,
    count: int,
    lines: list[list[int]],
    most: int,
    more: str = MORE_KEYS,
) -> None:
    """Count rows under their kind, or under `more` once there are KEYS_KEPT kinds."""
    known = kind if kind in mine or len(mine) < KEYS_KEPT else more
    mine.setdefault(known, NotedRows()).add(count, lines, most)


def _add_up(
    mine: dict[str, NotedRows], later: dict[str, NotedRows], most: int, more: str = MORE_KEYS
) -> None:
    for kind, noted in later.items():
        _note(mine, kind, noted.count, noted.lines, most, more)


def reason_of(problem: str) -> str:
    """The text that problems of one kind share: `problem` without details, indices and values of the row.

    Details are in brackets at the end of the text, or before a semicolon. Values are in single quotes, or
    follow "is" as a number or in double quotes.
    """
    return VALUES.sub("…", DETAILS.sub("", problem))


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    if not len(lengths):
        return {}
    values = np.quantile(lengths, np.array(QUANTILES) / 100, method="lower")
    return {str(percent): int(value) for percent, value in zip(QUANTILES, values, strict=True)}


def _histogram(lengths: np.ndarray) -> list[tuple[str, int]]:
    """How many rows are at most 16, 32, 64, ... tokens long, and too long for the number before."""
    if not len(lengths):
        return []
    exponents = np.maximum(np.ceil(np.log2(lengths)).astype(int), 4)
    counts = np.bincount(exponents)
    first = int(exponents.min())
    return [(str(2**exponent), int(counts[exponent])) for exponent in range(first, len(counts))]
