"""What a data file holds, and all that is wrong with it, before the run that would learn from it.

python -m training.check --data-path data/yayi_train_example.json --input-model checkpoints/tiny-bloom
"""

import json
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from training.common.errors import UserError, run_command
from training.consts import NOT_LEARNT
from training.data.audit import NOTES
from training.data.encoded import encode_chunks, new_findings
from training.text.encoding import show
from training.text.tokenizer import load_tokenizer

EXAMPLES_SHOWN = 2
NAMES_SHOWN = 12
BAR_WIDTH = 50

ON_BAD_ROW = click.Choice(["error", "drop"])


@click.command(context_settings={"show_default": True})
@click.option(
    "--data-path", required=True, multiple=True, help="File or data set to check; may be given several times."
)
@click.option("--input-model", required=True, help="Model whose tokenizer will be used: a directory or name.")
@click.option(
    "--max-length", type=click.IntRange(min=1), default=2048, help="Longest row, in tokens, as in training."
)
@click.option(
    "--on-bad-row",
    type=ON_BAD_ROW,
    default="error",
    help="Whether a row that cannot be used is an error, or dropped and counted.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a file instead of the text.")
def main(
    data_path: tuple[str, ...], input_model: str, max_length: int, on_bad_row: str, as_json: bool
) -> None:
    """Say what is in --data-path: how much would be learnt, cut and dropped, and which rows cannot be used.

    Exits with status 2 if any row cannot be used.
    """
    tokenizer = load_tokenizer(input_model)
    summaries = []
    for path in data_path:
        findings = new_findings(path, tokenizer, max_length)
        examples: list[str] = []
        for chunk in encode_chunks(path, tokenizer, max_length):
            findings += chunk.findings
            ends = chunk.rows["end"].tolist()
            for start, end in zip([0, *ends], ends[: EXAMPLES_SHOWN - len(examples)], strict=False):
                input_ids, learnt = chunk.input_ids[start:end], chunk.learnt[start:end]
                examples.append(show(input_ids, np.where(learnt, input_ids, NOT_LEARNT), tokenizer))
        summary = findings.summary()
        summaries.append(summary)
        if as_json:
            click.echo(json.dumps({"file": path, **summary}, ensure_ascii=False))
        else:
            click.echo("\n".join([*full_form(path, summary), *map(_example, examples)]))
    refuse_unusable(data_path, summaries, on_bad_row)


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


def _example(text: str) -> str:
    return f"\nan example, what is learnt between ⟦ and ⟧:\n{text}"


if __name__ == "__main__":
    run_command(main)
