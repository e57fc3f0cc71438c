"""Estimate what each way of doing a run takes, and which ways fit, from the model's configuration alone.

python -m training.plan --input-model bigscience/bloomz-7b1-mt --num-gpus 8 --gpu-memory 80

It takes the trainer's options that change the answer. With --data-path it counts the batches of the run.
"""

from typing import Any

import click

from training.common.command_line import FiniteRange, OptionsCommand, options_of
from training.common.console import quiet_libraries
from training.common.errors import run_command
from training.common.hub import check_base_model
from training.common.options import PLANNED, Options
from training.cost.ways import TFLOPS, UTILIZATION, Machine, plan
from training.data.examples import build_datasets
from training.data.tool_rows import data_has_tools
from training.model.context import longest_row
from training.text.tokenizer import load_tokenizer_and_new_tokens


@click.command(cls=OptionsCommand, context_settings={"show_default": True, "max_content_width": 110})
@options_of(Options, only=PLANNED, required=("input_model",))
@click.option("--num-gpus", type=click.IntRange(min=1), required=True, help="Number of cards in the machine.")
@click.option(
    "--gpu-memory",
    type=FiniteRange(min=0, min_open=True),
    required=True,
    help="Memory of each card, in GB.",
)
@click.option(
    "--gpu-tflops",
    type=FiniteRange(min=0, min_open=True),
    default=TFLOPS,
    help="Peak TFLOP/s of a card in bf16, which the time is computed from; the default is an A100's.",
)
@click.option(
    "--utilization",
    type=FiniteRange(0, 1, min_open=True),
    default=UTILIZATION,
    help="Share of that peak that the run is assumed to reach.",
)
def main(num_gpus: int, gpu_memory: float, gpu_tflops: float, utilization: float, **values: Any) -> None:
    """Say how much memory, disk and time a run takes, and which configuration to use."""
    quiet_libraries()
    options = Options(**values)
    check_base_model(options.input_model)
    options.max_length = longest_row(options.input_model, options.max_length)
    tools = data_has_tools(options)
    tokenizer, new_tokens = load_tokenizer_and_new_tokens(options.input_model, options.system, tools=tools)
    examples = build_datasets(options, tokenizer)[0] if options.data_path else None
    machine = Machine(num_gpus, int(gpu_memory * 1e9), gpu_tflops, utilization)
    for line in plan(options, tokenizer, new_tokens, examples, machine):
        print(line)


if __name__ == "__main__":
    run_command(main)
