"""Before a run: what each way of making it takes, and which fit, from the model's configuration alone.

python -m training.plan --input-model bigscience/bloomz-7b1-mt --num-gpus 8 --gpu-memory 80

It takes those of the trainer's options that change the answer; with --data-path the batches are those of the
run.
"""

from typing import Any

import click

from training.common.command_line import options_of
from training.common.console import quiet_libraries
from training.common.errors import run_command
from training.common.hub import check_base_model
from training.common.options import PLANNED, Options
from training.cost.ways import TFLOPS, UTILIZATION, Machine, plan
from training.data.examples import build_datasets
from training.text.tokenizer import load_tokenizer_and_new_tokens


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@options_of(Options, only=PLANNED, required=("input_model",))
@click.option("--num-gpus", type=click.IntRange(min=1), required=True, help="Cards of the box.")
@click.option(
    "--gpu-memory", type=click.FloatRange(min=0, min_open=True), required=True, help="GB of each card."
)
@click.option(
    "--gpu-tflops",
    type=click.FloatRange(min=0, min_open=True),
    default=TFLOPS,
    help="A card's peak in bf16, for the time; the default is an A100's.",
)
@click.option(
    "--utilization",
    type=click.FloatRange(0, 1, min_open=True),
    default=UTILIZATION,
    help="The share of that peak that the run is taken to reach.",
)
def main(num_gpus: int, gpu_memory: float, gpu_tflops: float, utilization: float, **values: Any) -> None:
    """Say what a run takes of cards, host, disk and time, and which configuration to use."""
    quiet_libraries()
    options = Options(**values)
    check_base_model(options.input_model)
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(options.input_model)
    examples = build_datasets(options, tokenizer)[0] if options.data_path else None
    machine = Machine(num_gpus, int(gpu_memory * 1e9), gpu_tflops, utilization)
    for line in plan(options, tokenizer, new_tokens, examples, machine):
        print(line)


if __name__ == "__main__":
    run_command(main)
