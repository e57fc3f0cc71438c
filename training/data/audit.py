"""What a data file holds and what is wrong with it, counted while its rows stream by."""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.common.errors import UserError
from training.consts import BREAKER
from training.data.duplicates import RowHashes, conflicts, duplicates
from training.text.conversation import Conversation, domain_of

# What is done about a row that cannot be used.
ON_BAD_ROW = ("error", "drop")

# Errors that are kept with their text; the rest are counted.
ERRORS_KEPT = 100

# Lines that are kept of everything else.
LINES_KEPT = 3

NAMES_SHOWN = 12

BAR_WIDTH = 50

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)

# Any text that looks like a control token of ours or of another model; a tokenizer's own come on top.
LOOKALIKE = r"<[|｜][^<>|｜\n]{1,30}[|｜]>"

# What may be wrong with a row that can be used.
NOTES = {
    "dropped": "DROPPED, first turn beyond --max-length",
    "cut": "cut after the last turn within --max-length",
    "duplicate": "the same as an earlier row",
    "conflict": "the same prompt as another row, but another answer",
    "lookalike": "a text that looks like a control token (it stays text)",
    "breaker": "U+E000 in a text (it is removed)",
    "nul": "NUL in a text",
    "bom": "a byte order mark (at the start of the file it is read over; in a text it stays)",
}


@dataclass
class Noted:
    """How many rows, and the lines of the first few: one line a row, or all of those that belong together."""

    count: int = 0
    lines: list[list[int]] = field(default_factory=list)

    def add(self, count: int, lines: Iterable[list[int]]) -> None:
        self.count += count
        self.lines += list(lines)[: LINES_KEPT - len(self.lines)]


class Findings:
    """Collects what `summary` says. Those of two stretches of a file add up, in the file's order."""

    def __init__(self, max_length: int, special_tokens: Iterable[str]) -> None:
        self._max_length = max_length
        names = sorted(map(re.escape, special_tokens), key=len, reverse=True)
        self._lookalike = re.compile("|".join([LOOKALIKE, *names]), re.IGNORECASE)
        self._rows = 0
        self._ends_at: tuple[int, str] | None = None
        self._errors: list[tuple[int, str]] = []
        self._unusable: dict[str, Noted] = {}
        self._notes = {kind: Noted() for kind in NOTES}
        self._formats: Counter[str] = Counter()
        self._domains: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._learnt = 0
        self._kept = Counter(rows=0, tokens=0, learnt=0)
        # One entry a usable row.
        self._lines = array("q")
        self._lengths = array("q")
        self._row_hashes = array("Q")
        # One entry a turn.
        self._turn_lines = array("q")
        self._prompts = array("Q")
        self._answers = array("Q")

    def add_unusable(self, line: int, problem: str, *, ends_file: bool = False) -> None:
        """Note a row that cannot be used; `ends_file` where the rows after it cannot be read either."""
        self._rows += 1
        if ends_file:
            self._ends_at = (line, problem)
        if len(self._errors) < ERRORS_KEPT:
            self._errors.append((line, problem))
        self._unusable.setdefault(reason_of(problem), Noted()).add(1, [[line]])

    def add_usable(
        self,
        line: int,
        row_format: str,
        conversation: Conversation,
        hashes: RowHashes,
        answers: Sequence[tuple[int, int]],
        kept_length: int,
    ) -> None:
        """Note a row by where its `answers` start and end, in tokens, and how many tokens are kept of it."""
        length = answers[-1][1]
        self._rows += 1
        self._formats[row_format] += 1
        self._domains[domain_of(conversation)] += 1
        self._turns[len(answers)] += 1
        self._lengths.append(length)
        self._lines.append(line)
        self._learnt += sum(end - start for start, end in answers)
        if kept_length:
            self._kept["rows"] += 1
            self._kept["tokens"] += kept_length
            self._kept["learnt"] += sum(end - start for start, end in answers if end <= kept_length)
        self._row_hashes.append(hashes.row)
        self._turn_lines.extend([line] * len(answers))
        self._prompts.extend(hashes.prompts)
        self._answers.extend(hashes.answers)

        if kept_length < length:
            self._notes["cut" if kept_length else "dropped"].add(1, [[line]])
        texts = "\n".join(texts_of(conversation))
        for kind, found in (
            ("lookalike", self._lookalike.search(texts)),
            ("breaker", BREAKER in texts),
            ("nul", "\0" in texts),
            ("bom", "\ufeff" in texts),
        ):
            if found:
                self._notes[kind].add(1, [[line]])

    def add_bom(self) -> None:
        """Note a byte order mark at the start of the file."""
        self._notes["bom"].add(1, [[1]])

    def __iadd__(self, later: "Findings") -> "Findings":
        self._rows += later._rows
        self._ends_at = self._ends_at or later._ends_at
        self._errors += later._errors[: ERRORS_KEPT - len(self._errors)]
        for mine, theirs in ((self._unusable, later._unusable), (self._notes, later._notes)):
            for kind, noted in theirs.items():
                mine.setdefault(kind, Noted()).add(noted.count, noted.lines)
        for name in ("_formats", "_domains", "_turns", "_kept"):
            getattr(self, name).update(getattr(later, name))
        self._learnt += later._learnt
        for name in ("_lines", "_lengths", "_row_hashes", "_turn_lines", "_prompts", "_answers"):
            getattr(self, name).extend(getattr(later, name))
        return self

    def summary(self) -> dict[str, Any]:
        """All of it, in JSON's types: what the check prints, the cache keeps and the log quotes.

        rows                             rows in the file
        ends_at                          [line, problem] where a JSON array could not be read on, or null
        unusable                         {reason: {"count", "lines"}}
        errors                           [[line, problem]] of the first ERRORS_KEPT unusable rows
        notes                            {kind of NOTES: {"count", "lines"}}
        formats, domains, turns          {name, prefix or number: usable rows}
        max_length, tokens, learnt       tokens and learnt ones of the usable rows
        quantiles, histogram             {percent: tokens a row}, {longest: rows}
        kept                             {"rows", "tokens", "learnt"} that training sees

        `lines` are lists, of one line or of those that belong together.
        """
        lengths, lines, turn_lines = map(np.asarray, (self._lengths, self._lines, self._turn_lines))
        rows, prompts, answers = map(np.asarray, (self._row_hashes, self._prompts, self._answers))
        same = [group.tolist() for group in duplicates(rows, lines)]
        opposed = [group.tolist() for group in conflicts(prompts, answers, turn_lines)]
        notes = {
            **self._notes,
            "duplicate": _noted_groups(same, sum(len(group) - 1 for group in same)),
            "conflict": _noted_groups(opposed, len({line for group in opposed for line in group})),
        }
        quantiles = np.quantile(lengths, np.array(QUANTILES) / 100, method="lower") if len(lengths) else []
        return {
            "rows": self._rows,
            "ends_at": self._ends_at and list(self._ends_at),
            "unusable": {reason: vars(noted) for reason, noted in self._unusable.items()},
            "errors": [list(error) for error in self._errors],
            "notes": {kind: vars(noted) for kind, noted in notes.items() if noted.count},
            "formats": dict(self._formats.most_common()),
            "domains": dict(self._domains.most_common()),
            "turns": {str(turns): rows for turns, rows in sorted(self._turns.items())},
            "max_length": self._max_length,
            "tokens": int(lengths.sum()),
            "learnt": self._learnt,
            "quantiles": {str(q): int(value) for q, value in zip(QUANTILES, quantiles, strict=False)},
            "histogram": dict(_histogram(lengths)),
            "kept": dict(self._kept),
        }


def texts_of(conversation: Conversation) -> Iterable[str]:
    """Every text that the row has."""
    yield conversation.system
    for turn in conversation.turns:
        yield turn.human
        yield turn.yayi


def reason_of(problem: str) -> str:
    """What a problem has in common with its like: without details in brackets, indices and quoted values."""
    return re.sub(r"(?<=\[)\d+(?=\])|'[^']*'", "…", re.sub(r" \(.*\)", "", problem))


def _noted_groups(groups: list[list[int]], count: int) -> Noted:
    return Noted(count, [group[:LINES_KEPT] for group in sorted(groups)[:LINES_KEPT]])


def _histogram(lengths: np.ndarray) -> list[tuple[str, int]]:
    """How many rows are at most 16, 32, 64, ... tokens long and longer than the one before."""
    if not len(lengths):
        return []
    exponents = np.maximum(np.ceil(np.log2(lengths)).astype(int), 4)
    counts = np.bincount(exponents)
    first = int(exponents.min())
    return [(str(2**exponent), int(counts[exponent])) for exponent in range(first, len(counts))]


def refuse_unusable(paths: Sequence[str], summaries: Sequence[dict[str, Any]], on_bad_row: str) -> None:
    """Raise UserError if there are rows that cannot be used, with a line for each of the first.

    Where they are to be dropped, only if the rest of a JSON array cannot be read, or no row is left.
    """
    files = list(zip(paths, summaries, strict=True))
    problems = [f"{path}:{line}: {problem}" for path, summary in files for line, problem in summary["errors"]]
    rows = sum(summary["rows"] for summary in summaries)
    count = sum(map(unusable_count, summaries))
    unread = [(path, *summary["ends_at"]) for path, summary in files if summary["ends_at"]]
    if count and on_bad_row == "error":
        remedy = "" if unread else ", or pass --on-bad-row drop"
        if count == 1:
            raise UserError(f"{problems[0]}; mend the row{remedy}")
        named = "" if count == len(problems) else f", {len(problems):,} of them named above"
        raise UserError(f"{count:,} of {rows:,} rows cannot be used{named}; mend them{remedy}", problems)
    for path, line, problem in unread:
        raise UserError(f"{path}:{line}: {problem}, so that nobody knows what would be dropped")
    if not any(summary["kept"]["rows"] for summary in summaries):
        too_long = f"every row is longer than --max-length {summaries[0]['max_length']}"
        problem = too_long if rows > count else "none of the rows can be used" if rows else "no rows"
        raise UserError(f"{', '.join(paths)}: {problem}")


def unusable_count(summary: dict[str, Any]) -> int:
    return sum(noted["count"] for noted in summary["unusable"].values())


def short_form(path: str, summary: dict[str, Any]) -> list[str]:
    """A line on what will be learnt of a file, and one for each thing to know about some of its rows."""
    kept = summary["kept"]
    lines = [f"{path}: {kept['rows']:,} rows of {kept['tokens']:,} tokens, {kept['learnt']:,} of them learnt"]
    for reason, noted in summary["unusable"].items():
        lines.append(f"DROPPED, cannot be used, {reason}: {_rows(path, noted)}")
    return lines + _notes(path, summary)


def full_form(path: str, summary: dict[str, Any]) -> list[str]:
    """All of a summary, as lines for a terminal."""
    rows, unusable = summary["rows"], unusable_count(summary)
    usable = rows - unusable
    lines = [f"{path}: {rows:,} rows, {usable:,} of them can be used"]
    if usable:
        domains = {prefix or "none": count for prefix, count in summary["domains"].items()}
        lines += [
            f"  format      {_counts(summary['formats'])}",
            f"  domain      {_counts(domains)}",
            f"  turns       {_counts(summary['turns'])}",
            f"  learnt      {summary['learnt']:,} of {summary['tokens']:,} tokens"
            f" ({summary['learnt'] / summary['tokens']:.1%})",
            "  tokens a row",
            "    " + "".join(f"{_quantile_name(name):>9}" for name in summary["quantiles"]),
            "    " + "".join(f"{value:>9,}" for value in summary["quantiles"].values()),
        ]
        most = max(summary["histogram"].values())
        for longest, count in summary["histogram"].items():
            bar = "█" * round(count / most * BAR_WIDTH) or "▏" * (count > 0)
            lines.append(f"    to {int(longest):>7,}  {bar} {count:,}")
    if unusable:
        lines.append(f"cannot be used: {unusable:,} rows")
    for reason, noted in summary["unusable"].items():
        lines.append(f"  {reason}: {_rows(path, noted)}")
    kept = summary["kept"]
    return [
        *lines,
        *_notes(path, summary),
        f"training with --max-length {summary['max_length']} sees {kept['rows']:,} rows of"
        f" {kept['tokens']:,} tokens, {kept['learnt']:,} of them learnt",
    ]


def _notes(path: str, summary: dict[str, Any]) -> list[str]:
    notes = summary["notes"]
    return [f"{text}: {_rows(path, notes[kind])}" for kind, text in NOTES.items() if kind in notes]


def _rows(path: str, noted: dict[str, Any]) -> str:
    """How many rows, and where the first are; lines that belong together are joined by "="."""
    places = ", ".join(f"{path}:{' = '.join(map(str, lines))}" for lines in noted["lines"])
    more = noted["count"] > len(noted["lines"])
    return (
        f"{noted['count']:,} {'row' if noted['count'] == 1 else 'rows'} ({places}{', ...' if more else ''})"
    )


def _counts(counts: dict[str, int]) -> str:
    named = [f"{name}: {count:,}" for name, count in list(counts.items())[:NAMES_SHOWN]]
    rest = list(counts.values())[NAMES_SHOWN:]
    if rest:
        named.append(f"{len(rest):,} others: {sum(rest):,}")
    return ", ".join(named)


def _quantile_name(percent: str) -> str:
    return {"0": "min", "50": "median", "100": "max"}.get(percent, f"{percent} %")
