"""What a token costs in time and memory as rows grow longer, and as a micro-batch gets more of them.

    python -m tests.benchmarks.scaling

The Bloom of tests.benchmarks.train_step, our way, on rows of random tokens. The second half of each row is
supervised. Every line is measured in a process of its own.
"""

import json
import subprocess
import sys

import click
import torch

from tests.benchmarks.train_step import BASES, DTYPES, Rows, measure, model_of, needed_flops, step_of
from training.common.errors import run_command
from training.consts import NOT_SUPERVISED

BASE = "bloom"
LENGTHS = (256, 512, 1024, 2048, 4096)
ROW_COUNTS = (4, 16, 64)
LENGTH_OF_COUNTED_ROWS = 256


def random_rows(count: int, length: int) -> Rows:
    torch.manual_seed(0)
    ids = torch.randint(BASES[BASE].vocab_size, (count, length)).tolist()
    prompt = length // 2
    return [{"input_ids": row, "labels": [NOT_SUPERVISED] * prompt + row[prompt:]} for row in ids]


@click.command(context_settings={"show_default": True})
@click.option("--lengths", default=",".join(map(str, LENGTHS)), help="Tokens of one row.")
@click.option("--row-counts", default=",".join(map(str, ROW_COUNTS)), help="Rows of 256 tokens.")
@click.option("--steps", type=click.IntRange(min=1), default=3, help="Steps to take the median of.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16")
@click.option(
    "--one", nargs=2, type=int, help="Used by this benchmark itself: measure ROWS of LENGTH, and print JSON."
)
def main(lengths: str, row_counts: str, steps: int, dtype: str, one: tuple[int, int] | None) -> None:
    """Print a line for each size of batch."""
    if one:
        model = model_of(BASE, "ours", DTYPES[dtype])
        step = step_of("ours", model, random_rows(*one), tokenizer=None)
        print(json.dumps(measure(step, model, steps)))
        return
    click.echo(f"{'rows':>6}{'length':>8}{'ms a token':>12}{'peak GB':>9}{'of GEMM bound':>15}   {dtype}")
    sizes = [(1, int(length)) for length in lengths.split(",") if length]
    sizes += [(int(count), LENGTH_OF_COUNTED_ROWS) for count in row_counts.split(",") if count]
    for count, length in sizes:
        command = [sys.executable, "-m", "tests.benchmarks.scaling", "--steps", str(steps), "--dtype", dtype]
        finished = subprocess.run(
            [*command, "--one", str(count), str(length)], stdout=subprocess.PIPE, check=True
        )
        result = json.loads(finished.stdout.splitlines()[-1])
        share = needed_flops(BASE, random_rows(count, length)) / result["seconds"] / result["bound"]
        click.echo(
            f"{count:6}{length:8}{result['seconds'] / count / length * 1000:12.2f}"
            f"{result['peak'] / 1e9:9.2f}{share:15.0%}"
        )


if __name__ == "__main__":
    run_command(main)
