"""Check a data file before training on it: what it holds, and everything that is wrong with it.

python -m training.check --data-path data/yayi_train_example.json --input-model checkpoints/tiny-bloom
"""

import json
import sys
from pathlib import Path

import click
from transformers import PreTrainedTokenizerFast

from training.common.columns import RowColumns
from training.common.command_line import ModelPath, ParsedText, UserPath, option_of
from training.common.errors import UserError, run_command
from training.common.files import write_atomic
from training.common.option_texts import Source, parse_source, source_text
from training.common.options import Learn, Options
from training.consts import CONTEXT
from training.data.audit import ON_BAD_ROW, full_form, refusal, verdict
from training.data.encoded import RowOptions, encode_chunks, new_findings
from training.data.findings import LINES_KEPT
from training.data.near_duplicates import FIRST_ROWS, NearDuplicates
from training.data.page import CheckedFile, check_page
from training.data.reader import read_raw_rows
from training.data.sources import files_without_weights
from training.data.tool_rows import has_tools
from training.model.context import longest_row
from training.text.encoding import show, supervised_runs
from training.text.tokenizer import load_tokenizer

EXAMPLES_SHOWN, EXAMPLES_ON_PAGE = 2, 6


@click.command(context_settings={"show_default": True})
@click.option(
    "--data-path",
    type=ParsedText("FILE[:WEIGHT]", parse_source),
    required=True,
    multiple=True,
    help="Rows to check, named as for the trainer; may be given several times.",
)
@click.option(
    "--input-model",
    type=ModelPath(),
    required=True,
    help="Model whose tokenizer will be used: a directory or name.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    show_default=f"{CONTEXT}, or what the model can read if that is less",
    help="Tokens of the longest row, as in training.",
)
@click.option(
    "--on-bad-row",
    type=click.Choice(ON_BAD_ROW),
    default="error",
    help="Whether a row that cannot be used is an error, or dropped and counted.",
)
@option_of(Options, "columns")
@option_of(Options, "system")
@option_of(Options, "learn")
@click.option("--all", "all_lines", is_flag=True, help="Name every row of each finding, not the first three.")
@click.option(
    "--near",
    type=click.Choice(("first", "all")),
    default="first",
    help=f"Look for near-duplicates among the first {FIRST_ROWS:,} different rows of a file, or among all.",
)
@click.option(
    "--html",
    "html_path",
    type=UserPath(dir_okay=False, path_type=Path),
    help="Write a page with all that is said, histograms and marked examples to this file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file instead of text.")
def main(
    data_path: tuple[Source, ...],
    input_model: str,
    max_length: int | None,
    on_bad_row: str,
    columns: RowColumns | None,
    system: str | None,
    learn: Learn,
    all_lines: bool,
    near: str,
    html_path: Path | None,
    as_json: bool,
) -> None:
    """Say what is in --data-path: how many tokens would be supervised, which rows would be cut or dropped,
    and which rows cannot be used.

    Exits with status 2 if any row cannot be used.
    """
    longest = longest_row(input_model, max_length, on_stderr=as_json)
    most_lines = sys.maxsize if all_lines else LINES_KEPT
    paths = files_without_weights(data_path)
    row_options = RowOptions(learn, columns)
    tokenizer = load_tokenizer(input_model, system, tools=any(has_tools(path, row_options) for path in paths))
    files = []
    for path in paths:
        near_duplicates = NearDuplicates(FIRST_ROWS if near == "first" else sys.maxsize)
        file = check(path, tokenizer, longest, row_options, most_lines, near_duplicates)
        files.append(file)
        if as_json:
            click.echo(json.dumps({"file": path, **file.summary}, ensure_ascii=False))
        else:
            examples = [_example(show(runs)) for runs in file.examples[:EXAMPLES_SHOWN]]
            click.echo("\n".join([*full_form(path, file.summary, all_lines=all_lines), *examples]))

    summaries = [file.summary for file in files]
    error = refusal(paths, summaries, on_bad_row)
    sources, options = list(map(source_text, data_path)), _options(longest, columns, system, learn)
    said = [str(error)] if error else verdict(sources, summaries, options)
    if html_path:
        _write(html_path, check_page(files, said, is_usable=error is None))
    if error:
        # Where the text is for people, it has named these rows.
        raise error if as_json else UserError(str(error))
    if not as_json:
        click.echo("\n".join(["", *said]))


def check(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    longest: int,
    row_options: RowOptions,
    most_lines: int,
    near_duplicates: NearDuplicates,
) -> CheckedFile:
    """Read the whole of a file. Raises UserError for one that cannot be read.

    longest: the longest row in training, in tokens. most_lines: how many lines are kept of what is found.
    """
    findings = new_findings(tokenizer, longest, most_lines)
    examples = []
    raw_rows = read_raw_rows(path)
    for chunk in encode_chunks(raw_rows, tokenizer, longest, row_options, most_lines):
        findings += chunk.findings
        for line, kept in zip(chunk.rows["line"].tolist(), chunk.kept, strict=True):
            near_duplicates.add(line, kept.row_hash, kept.conversation)
        ends = chunk.rows["end"].tolist()
        for start, end in zip([0, *ends], ends[: EXAMPLES_ON_PAGE - len(examples)], strict=False):
            runs = supervised_runs(chunk.input_ids[start:end], chunk.supervised[start:end], tokenizer)
            examples.append(list(runs))
    findings.add_remarks(raw_rows.remarks)
    compared = {"compared": near_duplicates.compared, "left_out": near_duplicates.left_out}
    near = vars(near_duplicates.found(most_lines)) | compared
    return CheckedFile(path, findings.summary() | {"near_duplicates": near}, examples)


def _options(longest: int, columns: RowColumns | None, system: str | None, learn: Learn) -> list[str]:
    """The trainer's options for what was checked, as they are typed."""
    options = ["--max-length", str(longest)]
    if columns:
        options += ["--columns", str(columns)]
    if system:
        options += ["--system", system]
    return options if learn == "all" else [*options, "--learn", learn]


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _example(text: str) -> str:
    return f"\nan example, supervised tokens between ⟦ and ⟧:\n{text}"


if __name__ == "__main__":
    run_command(main)
