"""A file's findings as lines, for the log of a run and for `training.check`; and the refusal of bad rows."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from training.common.errors import UserError
from training.data.findings import NOTES, Unread

# What is done about a row that cannot be used.
ON_BAD_ROW = ("error", "drop")

NAMES_SHOWN = 12

# How many of the rows that are counted a group of lines names, where these are not all of the group: of equal
# rows, the first is none of those that repeat it.
ROWS_OF_GROUP = {"duplicate": lambda lines: len(lines) - 1}

# The longest bar of the histogram, in characters.
BAR_WIDTH = 50


def refuse_unusable(paths: Sequence[str], summaries: Sequence[dict[str, Any]], on_bad_row: str) -> None:
    """Raise the error of `refusal`, if there is one."""
    error = refusal(paths, summaries, on_bad_row)
    if error:
        raise error


def refusal(paths: Sequence[str], summaries: Sequence[dict[str, Any]], on_bad_row: str) -> UserError | None:
    """The error where there are rows that cannot be used; its details name the first rows of each kind.

    on_bad_row: "drop" where such rows are to be dropped; then it is an error only if the rest of a JSON array
    cannot be read, or if no row is left.
    """
    files = list(zip(paths, summaries, strict=True))
    problems = [line for path, summary in files for line in _problems(path, summary)]
    rows = sum(summary["rows"] for summary in summaries)
    count = sum(map(unusable_count, summaries))
    unread = [(path, *summary["ends_at"]) for path, summary in files if summary["ends_at"]]
    if count and on_bad_row == "error":
        remedy = "" if unread else ", or pass --on-bad-row drop"
        if count == 1:
            return UserError(f"{problems[0]}; mend the row{remedy}")
        more = count - len(problems)
        named = f", {len(problems):,} of them named (training.check --all names all)" if more else ""
        return UserError(f"{count:,} of {rows:,} rows cannot be used{named}; mend them{remedy}", problems)
    for path, line, problem in unread:
        return UserError(f"{path}:{line}: {problem}, so that nobody knows what would be dropped")
    if not any(summary["kept"]["rows"] for summary in summaries):
        too_long = f"every row is longer than --max-length {summaries[0]['max_length']}"
        none_usable = "none of the rows can be used" if rows else "no rows"
        problem = too_long if any(map(usable_count, summaries)) else none_usable
        return UserError(f"{', '.join(paths)}: {problem}")
    return None


def verdict(
    sources: Sequence[str], summaries: Sequence[dict[str, Any]], options: Sequence[str] = ()
) -> list[str]:
    """That files for which there is no `refusal` can be used, and the options that train on them.

    sources: what --data-path names them by, such as a folder, with its weight. options: further ones, by
    which the files were read.
    """
    rows = sum(summary["rows"] for summary in summaries)
    kept = sum(summary["kept"]["rows"] for summary in summaries)
    dropped = "; the others are dropped" if kept < rows else ""
    options = [*(part for source in sources for part in ("--data-path", source)), *options]
    if any(map(unusable_count, summaries)):
        options += ["--on-bad-row", "drop"]
    return [
        f"usable: {kept:,} of {rows:,} rows can be trained on{dropped}",
        f"next: training.trainer with {shlex.join(options)}",
    ]


def _problems(path: str, summary: dict[str, Any]) -> Iterator[str]:
    """A line for each row that cannot be used whose line was kept, reason by reason."""
    problems = dict(summary["errors"])
    for reason, noted in summary["unusable"].items():
        for (line,) in noted["lines"]:
            yield f"{path}:{line}: {problems.get(line, reason)}"


def unusable_count(summary: dict[str, Any]) -> int:
    """How many rows of a file cannot be used."""
    return sum(noted["count"] for noted in summary["unusable"].values())


def usable_count(summary: dict[str, Any]) -> int:
    """How many rows of a file can be used: the others are mistakes, or left out as feedback."""
    left_out = summary["notes"].get("left_out", {"count": 0})["count"]
    return summary["rows"] - unusable_count(summary) - left_out


def short_form(path: str, summary: dict[str, Any]) -> list[str]:
    """A line on what training sees of a file, and a line for each kind of finding about its rows."""
    kept = summary["kept"]
    lines = [
        f"{path}: {kept['rows']:,} rows of {kept['tokens']:,} tokens, {kept['learnt']:,} of them supervised",
        *(f"{path}: {remark}" for remark in summary["remarks"]),
    ]
    for reason, noted in summary["unusable"].items():
        lines.append(f"DROPPED, cannot be used, {reason}: {_rows(path, noted)}")
    return lines + _notes(path, summary)


def full_form(path: str, summary: dict[str, Any], *, all_lines: bool = False) -> list[str]:
    """The whole summary of a file, as lines for a terminal.

    all_lines: whether each row that was kept of a finding has a line of its own.
    """
    rows, unusable, usable = summary["rows"], unusable_count(summary), usable_count(summary)
    lines = [
        f"{path}: {rows:,} rows, {usable:,} of them can be used",
        *(f"{path}: {remark}" for remark in summary["remarks"]),
    ]
    if usable:
        domains = {prefix or "none": count for prefix, count in summary["domains"].items()}
        lines += [
            f"  format      {counts_text(summary['formats'])}",
            f"  domain      {counts_text(domains)}",
            f"  turns       {counts_text(summary['turns'])}",
            f"  supervised  {summary['learnt']:,} of {summary['tokens']:,} tokens"
            f" ({summary['learnt'] / summary['tokens']:.1%})",
            *_quantile_table(summary),
            "  rows by their tokens",
            *_bars(summary["histogram"]),
        ]
    if unusable:
        lines.append(f"cannot be used: {unusable:,} rows")
    problems = dict(summary["errors"])
    for reason, noted in summary["unusable"].items():
        if all_lines or any(problems.get(line, reason) != reason for (line,) in noted["lines"]):
            lines.append(f"  {reason}: {rows_text(noted['count'])}")
            lines += [f"    {path}:{line}: {problems.get(line, reason)}" for (line,) in noted["lines"]]
        else:
            lines.append(f"  {reason}: {_rows(path, noted)}")
    kept = summary["kept"]
    return [
        *lines,
        *_notes(path, summary, all_lines),
        f"training with --max-length {summary['max_length']} sees {kept['rows']:,} rows of"
        f" {kept['tokens']:,} tokens, {kept['learnt']:,} of them supervised",
    ]


def _quantile_table(summary: dict[str, Any]) -> list[str]:
    """How long rows and answers are: a column for each quantile."""
    names = [quantile_name(percent) for percent in summary["quantiles"]]
    rows = [
        ("tokens", names),
        ("  a row", [f"{value:,}" for value in summary["quantiles"].values()]),
        ("  an answer", [f"{value:,}" for value in summary["answer_quantiles"].values()]),
    ]
    width = 2 + max(len(cell) for _, cells in rows for cell in cells)
    return [f"  {title:12}" + "".join(f"{cell:>{width}}" for cell in cells) for title, cells in rows]


def _bars(histogram: dict[str, int]) -> list[str]:
    """A bar for each length that rows have; lengths between them that no row has are left out."""
    most = max(histogram.values())
    width = max(len(f"{int(longest):,}") for longest in histogram)
    return [
        f"    to {int(longest):>{width},}  {'█' * round(count / most * BAR_WIDTH) or '▏'} {count:,}"
        for longest, count in histogram.items()
        if count
    ]


def unread_lines(path: str, unread: Unread) -> list[str]:
    """A line for each kind of thing that was not read of the rows of a file."""
    return _notes(path, unread.summary())


def _notes(path: str, summary: dict[str, Any], all_lines: bool = False) -> list[str]:
    lines = []
    for text, noted in notes_of(summary):
        lines.append(text + (rows_text(noted["count"]) if all_lines else _rows(path, noted)))
        if all_lines:
            lines += [f"  {place_text(path, group)}" for group in noted["lines"]]
    if summary["bookkeeping"]:
        lines.append(f"bookkeeping, not learnt: {counts_text(summary['bookkeeping'])}")
    return lines


def notes_of(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was found about rows that can be used: (what it is, up to their number, {"count", "lines"}).

    "has_more", where it is there, says whether there are rows that no line names.
    """
    for kind, text in NOTES.items():
        if kind in summary["notes"]:
            noted = summary["notes"][kind]
            named = sum(ROWS_OF_GROUP.get(kind, len)(lines) for lines in noted["lines"])
            yield f"{text}: ", noted | {"has_more": noted["count"] > named}
    near = summary.get("near_duplicates", {})
    if near.get("count"):
        yield f"{_near_text(near)}: ", near
    for key, noted in summary["not_learnt"].items():
        yield f'not learnt: "{key}" in ', noted


def _near_text(near: dict[str, Any]) -> str:
    """What a near-duplicate is, and among how many rows they were looked for."""
    first = f", of the first {near['compared']:,} different rows (--near all)" if near["left_out"] else ""
    return f"nearly the same as an earlier row (four fifths of their 5-character pieces are in both){first}"


def place_text(path: str, lines: list[int]) -> str:
    """Where rows are; lines that belong together are joined by "="."""
    return f"{path}:{' = '.join(map(str, lines))}"


def _rows(path: str, noted: dict[str, Any]) -> str:
    """How many rows were noted, and where the first are."""
    places = ", ".join(place_text(path, lines) for lines in noted["lines"])
    return f"{rows_text(noted['count'])} ({places}{', ...' if has_more(noted) else ''})"


def has_more(noted: dict[str, Any]) -> bool:
    """Whether there are rows that no line names."""
    return noted.get("has_more", noted["count"] > len(noted["lines"]))


def rows_text(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def counts_text(counts: dict[str, int]) -> str:
    named = [f"{name}: {count:,}" for name, count in list(counts.items())[:NAMES_SHOWN]]
    rest = list(counts.values())[NAMES_SHOWN:]
    if rest:
        named.append(f"{len(rest):,} others: {sum(rest):,}")
    return ", ".join(named)


def quantile_name(percent: str) -> str:
    return {"0": "min", "50": "median", "100": "max"}.get(percent, f"{percent} %")
