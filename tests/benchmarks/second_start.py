"""How long a later start takes to load its rows from the cache and to split them, after all imports.

    python -m tests.benchmarks.second_start --data-path FILE --input-model bigscience/bloomz-7b1-mt

The rows of --data-path are repeated to --rows, each with a number of its own in its text.
"""

import contextlib
import itertools
import json
import tempfile
import time
from pathlib import Path

import click

from training.common.errors import run_command
from training.common.option_texts import Source
from training.common.options import Options
from training.data.examples import build_datasets
from training.data.reader import read_rows
from training.text.conversation import from_row
from training.text.formats import written_formats
from training.text.tokenizer import load_tokenizer

STARTS = 3


def write_numbered(data_path: str, rows: int, path: Path) -> None:
    """Write as many messages rows, whose first question begins with the row's number, of those of a file that
    can be used.
    """
    as_messages = written_formats()["messages"]
    conversations = []
    for _, row in read_rows(data_path):
        with contextlib.suppress(ValueError):
            conversations.append(from_row(row, answered=True))
    with open(path, "w", encoding="utf-8") as file:
        for number, conversation in zip(range(rows), itertools.cycle(conversations), strict=False):
            row = as_messages(conversation)
            question = next(message for message in row["messages"] if message["role"] == "user")
            question["content"] = f"{number} {question['content']}"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@click.command()
@click.option("--data-path", required=True, help="Rows of any format.")
@click.option("--input-model", required=True, help="Model whose tokenizer is used.")
@click.option("--rows", type=click.IntRange(min=1), default=50_000, show_default=True)
@click.option("--test-size", type=click.FloatRange(0, 1, max_open=True), default=0.05, show_default=True)
def main(data_path: str, input_model: str, rows: int, test_size: float) -> None:
    """Print the seconds of the first start, which encodes, and of those after it."""
    tokenizer = load_tokenizer(input_model)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "rows.jsonl")
        write_numbered(data_path, rows, path)
        options = Options(
            data_path=(Source(str(path)),),
            max_length=2048,
            cache_dir=Path(directory, "cache"),
            test_size=test_size,
        )
        for start in range(1, STARTS + 1):
            began, worked = time.perf_counter(), time.process_time()
            build_datasets(options, tokenizer)
            click.echo(
                f"start {start}: {time.perf_counter() - began:.2f} s, "
                f"{time.process_time() - worked:.2f} s of them at work"
            )


if __name__ == "__main__":
    run_command(main)
