"""The time and the peak memory of encoding files of growing size into the cache, each in its own process.

    python -m tests.benchmarks.encode_memory --data-path FILE --input-model bigscience/bloomz-7b1-mt

The rows of the files given are repeated, each time with a number in their first text, so that no row is the
same as another. "again" is how long a second start takes, which finds everything in the cache.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from training.common.errors import run_command
from training.data.encoded import load_encoded, read_conversations
from training.text.conversation import Conversation, Turn
from training.text.formats import written_formats
from training.text.tokenizer import load_tokenizer

SIZES = (1_000, 125_000, 250_000, 500_000, 1_000_000)
MAX_LENGTH = 2048


def numbered(conversation: Conversation, number: int) -> Conversation:
    first, *rest = conversation.turns
    return Conversation((Turn(f"{number}. {first.human}", first.yayi), *rest), conversation.system)


def write_rows(path: Path, conversations: list[Conversation], rows: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number, conversation in enumerate(itertools.islice(itertools.cycle(conversations), rows)):
            row = written_formats()["multi-round"](numbered(conversation, number))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def encode(path: str, input_model: str, cache: str) -> dict[str, float]:
    tokenizer = load_tokenizer(input_model)
    start = time.perf_counter()
    file = load_encoded(path, tokenizer, MAX_LENGTH, Path(cache))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rows": len(file), "tokens": file.summary["kept"]["tokens"], "seconds": seconds, "peak": peak}


@click.command()
@click.option("--data-path", "paths", required=True, multiple=True, help="Files with usable rows only.")
@click.option("--input-model", required=True, help="Model whose tokenizer is used.")
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Numbers of rows.")
@click.option(
    "--encode", "encoded", nargs=2, type=str, help="Used by this benchmark itself: encode FILE into CACHE."
)
def main(paths: tuple[str, ...], input_model: str, sizes: str, encoded: tuple[str, str] | None) -> None:
    """Print a line for each number of rows."""
    if encoded:
        print(json.dumps(encode(encoded[0], input_model, encoded[1])))
        return
    conversations = [conversation for path in paths for _, conversation in read_conversations(path)]
    click.echo(
        f"{'rows':>10}{'JSON GB':>9}{'tokens':>14}{'seconds':>9}{'rows/s':>8}{'peak GB':>9}{'again s':>9}"
    )
    for rows in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "rows.jsonl")
            write_rows(path, conversations, rows)
            command = [sys.executable, "-m", "tests.benchmarks.encode_memory", "--data-path", "-"]
            command += ["--input-model", input_model, "--encode", str(path), os.path.join(directory, "cache")]
            made, found = (
                json.loads(
                    subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1]
                )
                for _ in range(2)
            )
            gigabytes, speed = path.stat().st_size / 1e9, made["rows"] / made["seconds"]
            click.echo(
                f"{made['rows']:10,}{gigabytes:9.2f}{made['tokens']:14,}{made['seconds']:9.1f}"
                f"{speed:8,.0f}{made['peak'] / 1e9:9.2f}{found['seconds']:9.2f}"
            )


if __name__ == "__main__":
    run_command(main)
