"""Before a run: what each way of making it takes, and which fit, from the model's configuration alone.

python -m training.plan --input-model bigscience/bloomz-7b1-mt --num-gpus 8 --gpu-memory 80

It takes the trainer's options as well: with --data-path the batches are those of the run.
"""

import copy
from types import SimpleNamespace
from typing import Any

import click

from training import trainer
from training.common.console import quiet_libraries
from training.common.errors import run_command
from training.common.hub import check_base_model
from training.cost.ways import TFLOPS, UTILIZATION, Machine, plan
from training.data.examples import build_datasets
from training.text.tokenizer import load_tokenizer

# In the trainer's command only.
NOT_HERE = ("plan",)


def _trainer_options() -> list[click.Parameter]:
    """None of them required but the model."""
    options = [copy.copy(option) for option in trainer.main.params if option.name not in NOT_HERE]
    for option in options:
        option.required = option.name == "input_model"
    return options


@click.command(params=_trainer_options(), context_settings=trainer.main.context_settings)
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
def main(num_gpus: int, gpu_memory: float, gpu_tflops: float, utilization: float, **options: Any) -> None:
    """Say what a run takes of cards, host, disk and time, and which configuration to use."""
    quiet_libraries()
    chosen = SimpleNamespace(**options)
    check_base_model(chosen.input_model)
    tokenizer = load_tokenizer(chosen.input_model)
    rows = build_datasets(chosen, tokenizer)[0] if chosen.data_path else None
    machine = Machine(num_gpus, int(gpu_memory * 1e9), gpu_tflops, utilization)
    for line in plan(chosen, tokenizer, rows, machine):
        print(line)


if __name__ == "__main__":
    run_command(main)
