"""A file's findings as lines, for the log of a run and for `training.check`; and the refusal of bad rows."""

from collections.abc import Sequence
from typing import Any

from training.common.errors import UserError
from training.data.findings import NOTES, Unread

# What is done about a row that cannot be used.
ON_BAD_ROW = ("error", "drop")

NAMES_SHOWN = 12

# The longest bar of the histogram, in characters.
BAR_WIDTH = 50


def refuse_unusable(paths: Sequence[str], summaries: Sequence[dict[str, Any]], on_bad_row: str) -> None:
    """Raise UserError if there are rows that cannot be used, with a line for each of the first of them.

    on_bad_row: "drop" where such rows are to be dropped; then it is an error only if the rest of a JSON array
    cannot be read, or if no row is left.
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
    """How many rows of a file cannot be used."""
    return sum(noted["count"] for noted in summary["unusable"].values())


def short_form(path: str, summary: dict[str, Any]) -> list[str]:
    """A line on what training sees of a file, and a line for each kind of finding about its rows."""
    kept = summary["kept"]
    lines = [
        f"{path}: {kept['rows']:,} rows of {kept['tokens']:,} tokens, {kept['learnt']:,} of them supervised"
    ]
    for reason, noted in summary["unusable"].items():
        lines.append(f"DROPPED, cannot be used, {reason}: {_rows(path, noted)}")
    return lines + _notes(path, summary)


def full_form(path: str, summary: dict[str, Any]) -> list[str]:
    """The whole summary of a file, as lines for a terminal."""
    rows, unusable = summary["rows"], unusable_count(summary)
    usable = rows - unusable
    lines = [f"{path}: {rows:,} rows, {usable:,} of them can be used"]
    if usable:
        domains = {prefix or "none": count for prefix, count in summary["domains"].items()}
        lines += [
            f"  format      {_counts(summary['formats'])}",
            f"  domain      {_counts(domains)}",
            f"  turns       {_counts(summary['turns'])}",
            f"  supervised  {summary['learnt']:,} of {summary['tokens']:,} tokens"
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
        f" {kept['tokens']:,} tokens, {kept['learnt']:,} of them supervised",
    ]


def unread_lines(path: str, unread: Unread) -> list[str]:
    """A line for each kind of thing that was not read of the rows of a file."""
    return _notes(path, unread.summary())


def _notes(path: str, summary: dict[str, Any]) -> list[str]:
    notes, bookkeeping = summary["notes"], summary["bookkeeping"]
    lines = [f"{text}: {_rows(path, notes[kind])}" for kind, text in NOTES.items() if kind in notes]
    lines += [f'not learnt: "{key}" in {_rows(path, noted)}' for key, noted in summary["not_learnt"].items()]
    if bookkeeping:
        lines.append(f"bookkeeping, not learnt: {_counts(bookkeeping)}")
    return lines


def _rows(path: str, noted: dict[str, Any]) -> str:
    """How many rows were noted, and where the first are; lines that belong together are joined by "="."""
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
