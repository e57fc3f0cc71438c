"""Check a data file before training on it: what it holds, and everything that is wrong with it.

python -m training.check --data-path data/yayi_train_example.json --input-model checkpoints/tiny-bloom
"""

import json

import click

from training.common.columns import RowColumns
from training.common.command_line import ParsedText, PathOrName, option_of
from training.common.errors import run_command
from training.common.options import Learn, Options, Source, parse_source
from training.consts import CONTEXT
from training.data.audit import ON_BAD_ROW, full_form, refuse_unusable
from training.data.encoded import RowOptions, encode_chunks, new_findings
from training.data.reader import read_raw_rows
from training.data.sources import files_without_weights
from training.model.context import longest_row
from training.text.encoding import mask_labels, show
from training.text.tokenizer import load_tokenizer

EXAMPLES_SHOWN = 2


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
    type=PathOrName(),
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
@option_of(Options, "learn")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file instead of text.")
def main(
    data_path: tuple[Source, ...],
    input_model: str,
    max_length: int | None,
    on_bad_row: str,
    columns: RowColumns | None,
    learn: Learn,
    as_json: bool,
) -> None:
    """Say what is in --data-path: how many tokens would be supervised, which rows would be cut or dropped,
    and which rows cannot be used.

    Exits with status 2 if any row cannot be used.
    """
    tokenizer = load_tokenizer(input_model)
    longest = longest_row(input_model, max_length, on_stderr=as_json)
    summaries = []
    paths = files_without_weights(data_path)
    for path in paths:
        findings = new_findings(tokenizer, longest)
        examples: list[str] = []
        for chunk in encode_chunks(read_raw_rows(path), tokenizer, longest, RowOptions(learn, columns)):
            findings += chunk.findings
            ends = chunk.rows["end"].tolist()
            for start, end in zip([0, *ends], ends[: EXAMPLES_SHOWN - len(examples)], strict=False):
                input_ids, supervised = chunk.input_ids[start:end], chunk.supervised[start:end]
                examples.append(show(input_ids, mask_labels(input_ids, supervised), tokenizer))
        summary = findings.summary()
        summaries.append(summary)
        if as_json:
            click.echo(json.dumps({"file": path, **summary}, ensure_ascii=False))
        else:
            click.echo("\n".join([*full_form(path, summary), *map(_example, examples)]))
    refuse_unusable(paths, summaries, on_bad_row)


def _example(text: str) -> str:
    return f"\nan example, supervised tokens between ⟦ and ⟧:\n{text}"


if __name__ == "__main__":
    run_command(main)
