"""Write the rows of any number of files, of any format, into one file of one format.

The text of each conversation stays the same; an `input` becomes part of its instruction, as in training.

python -m training.convert --data-path data/yayi_train_example.json --to messages --output messages.jsonl

Of a Markdown file each `## question` becomes a row, and the text below it the answer.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import click

from training.common.columns import RowColumns
from training.common.command_line import ParsedText, UserPath, option_of
from training.common.errors import UserError, run_command
from training.common.files import write_atomic
from training.common.option_texts import Source, parse_source
from training.common.options import Options
from training.data.faq import is_markdown, read_faq
from training.data.findings import LINES_KEPT, reason_of
from training.data.reader import NotRead, RawRows, parse, read_raw_rows
from training.data.sources import files_without_weights
from training.text.conversation import Conversation, read_row
from training.text.formats import written_formats


@click.command()
@click.option(
    "--data-path",
    "sources",
    type=ParsedText("FILE[:WEIGHT]", parse_source),
    required=True,
    multiple=True,
    help="Rows to write, named as for the trainer, or a Markdown file of questions (its ## headings) and "
    "answers; may be given several times.",
)
@option_of(Options, "columns")
@click.option(
    "--to", "to_format", required=True, type=click.Choice(list(written_formats())), help="Format to write."
)
@click.option(
    "--output",
    required=True,
    type=UserPath(dir_okay=False, path_type=Path),
    help="JSON Lines file to write.",
)
@click.option("--force", is_flag=True, help="Overwrite --output if it exists.")
def main(
    sources: tuple[Source, ...], columns: RowColumns | None, to_format: str, output: Path, force: bool
) -> None:
    """Write the rows of all files, in order, into one JSON Lines file.

    Rows that the format cannot hold are left out, counted and named. A row may lack its last answer.
    """
    if output.exists() and not force:
        raise UserError(f"{output}: is there already; give another --output, or --force to write over it")
    tally = Tally()
    paths = files_without_weights(sources)

    def write(path: Path) -> None:
        nonlocal tally
        with open(path, "w", encoding="utf-8") as file:
            tally = convert(paths, written_formats()[to_format], file, columns)
        for reason, count in tally.left_out.items():
            more = ", ..." if count > LINES_KEPT else ""
            click.echo(f"left out, {reason}: {count:,} ({', '.join(tally.places[reason])}{more})")
        for key, count in sorted(tally.other_keys.items()):
            click.echo(f'not carried over, "{key}": of {count:,} rows')
        if not tally.written:
            raise UserError(
                f"{output}: not written; none of the {tally.read:,} rows can be a row of {to_format}"
            )

    try:
        write_atomic(output, write)
    except OSError as error:
        raise UserError(f"{output}: {error.strerror}") from None
    click.echo(f"{output}: {tally.written:,} rows, of {tally.read:,} read")


@dataclass
class Tally:
    """How many rows were read and written, why the others were not, and which of their keys were left out."""

    read: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # the first places of each reason
    other_keys: Counter[str] = field(default_factory=Counter)


def convert(
    paths: Sequence[str],
    to_format: Callable[[Conversation], dict[str, Any]],
    output: TextIO,
    columns: RowColumns | None = None,
) -> Tally:
    """Write the rows of `paths` to `output`, one at a time.

    to_format: makes a row of a conversation, or raises ValueError if there is none. columns: of the rows that
    are not of Markdown, whose parts are known. Raises UserError for a
    file that cannot be read to its end.
    """
    tally = Tally()
    for path in paths:
        is_faq = is_markdown(path)
        raw_rows = read_faq(path) if is_faq else read_raw_rows(path)
        for raw in raw_rows:
            place = f"{path}:{raw.number}"
            if isinstance(raw.content, NotRead):
                raise UserError(f"{place}: {raw.content.problem}")
            tally.read += 1
            try:
                read = read_row(parse(raw), None if is_faq else columns)
                if read.refusal:
                    raise ValueError(read.refusal)
                converted = to_format(read.as_it_stands())
            except ValueError as error:
                reason = reason_of(str(error))
                tally.left_out[reason] += 1
                places = tally.places.setdefault(reason, [])
                if len(places) < LINES_KEPT:
                    places.append(place)
                continue
            output.write(json.dumps(converted, ensure_ascii=False) + "\n")
            tally.written += 1
            tally.other_keys.update(read.not_learnt + read.harmless + ("system",) * read.other_system)
        if isinstance(raw_rows, RawRows):
            raw_rows.say_remarks()
    return tally


if __name__ == "__main__":
    run_command(main)
