"""How many rows a second are encoded into input_ids and labels, our way and the plain way, measured in turns.

    python -m tests.benchmarks.encode --data-path FILE --input-model bigscience/bloomz-7b1-mt

The plain way is the original's: one process, one row at a time, the whole text formatted, then tokenized, and
the ids searched for the answer. Instruction rows only, since it knows no others; they are repeated to --rows.
"""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator

import click
import numpy as np
from transformers import PreTrainedTokenizerFast

from training.common.errors import UserError, run_command
from training.consts import END, HUMAN, INTRO, NOT_SUPERVISED, SYSTEM, YAYI
from training.data.encoded import encode_chunks
from training.data.reader import read_raw_rows
from training.text.tokenizer import load_tokenizer

# Each way is measured this many times, in turns, so that other load on the machine falls on both.
TURNS = 8


def instruction_lines(paths: tuple[str, ...]) -> list[str]:
    """The lines that are instruction rows. Raises UserError where there are none."""
    lines = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            lines += [line for line in file if json.loads(line).get("instruction") is not None]
    if not lines:
        raise UserError(f"{', '.join(paths)}: no instruction row")
    return lines


def encode_plainly(path: str, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yayi = tokenizer.convert_tokens_to_ids(YAYI)
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            human = f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
            text = f"{SYSTEM}:\n{INTRO}\n\n{HUMAN}:\n{human}\n\n{YAYI}:\n{row['output']}\n\n{END}"
            input_ids = np.array(tokenizer(text)["input_ids"])
            labels = input_ids.copy()
            labels[: np.where(input_ids == yayi)[0][0] + 1] = NOT_SUPERVISED
            yield input_ids, labels


def plainly(path: str, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """(tokens, supervised tokens) of a file, encoded the original's way."""
    tokens = supervised = 0
    for input_ids, labels in encode_plainly(path, tokenizer):
        tokens += len(input_ids)
        supervised += np.count_nonzero(labels != NOT_SUPERVISED)
    return tokens, supervised


def ours(path: str, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """(tokens, supervised tokens) of a file, encoded as training does."""
    tokens = supervised = 0
    for chunk in encode_chunks(read_raw_rows(path), tokenizer, max_length=1 << 30):
        tokens += len(chunk.input_ids)
        supervised += np.count_nonzero(chunk.supervised)
    return tokens, supervised


@click.command()
@click.option("--data-path", "paths", required=True, multiple=True, help="JSON Lines with instruction rows.")
@click.option(
    "--input-model", required=True, help="Model whose tokenizer is used; BLOOM's has 250,680 entries."
)
@click.option("--rows", type=click.IntRange(min=TURNS), default=52_000, show_default=True)
def main(paths: tuple[str, ...], input_model: str, rows: int) -> None:
    """Print rows a second of both ways, and their ratio."""
    tokenizer = load_tokenizer(input_model)
    lines = instruction_lines(paths)
    repeated = itertools.islice(itertools.cycle(lines), rows)
    seconds: dict[str, list[float]] = {"plainly": [], "ours": []}
    with tempfile.TemporaryDirectory() as directory:
        for turn in range(TURNS):
            path = os.path.join(directory, f"{turn}.jsonl")
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(itertools.islice(repeated, rows // TURNS))
            found = set()
            for way in (plainly, ours):
                start = time.perf_counter()
                found.add(way(path, tokenizer))
                seconds[way.__name__].append(time.perf_counter() - start)
            assert len(found) == 1
    ratios = [plain / our for plain, our in zip(*seconds.values(), strict=True)]
    click.echo(
        f"{rows:,} rows ({len(lines):,} different ones), {len(tokenizer):,} tokens, {os.cpu_count()} cores"
    )
    for way, spent in seconds.items():
        click.echo(f"  {way:7}  {rows / sum(spent):8,.0f} rows a second")
    ratio = sum(seconds["plainly"]) / sum(seconds["ours"])
    click.echo(f"  ratio    {ratio:8.2f}   ({min(ratios):.2f} to {max(ratios):.2f} in {TURNS} turns)")


if __name__ == "__main__":
    run_command(main)
