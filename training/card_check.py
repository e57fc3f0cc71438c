"""Measure what the card of this machine does with our Bloom, and hold it to what it should do.

python -m training.card_check --quick --output-dir checkpoints/card

Each part writes what it found to card.md, for reading, and to card.json as it ends. It takes ten minutes on a
card, and less with --quick; without a card it measures the CPU, with tiny shapes. All parts but those that
train need no more than torch, transformers and our Bloom, so they also show what another torch would do.
"""

from pathlib import Path

import click
from transformers.utils.logging import disable_progress_bar

from training.card.decoding import measure_decoding
from training.card.exactness import compare_with_library
from training.card.kernels import find_kernels
from training.card.machine import measure_machine
from training.card.page import Check
from training.card.scale import scale_for
from training.card.several_cards import measure_several_cards
from training.card.timing import forget_peak, the_device
from training.card.training_speed import measure_training
from training.common.command_line import UserPath
from training.common.console import say
from training.common.errors import run_command


def _measure_runs(check: Check) -> None:
    """Part 5, imported when it runs: it needs all that the trainer needs."""
    from training.card import short_runs

    short_runs.measure_runs(check)


PARTS = {
    "The machine": measure_machine,
    "Exactness: our Bloom and the library's": compare_with_library,
    "Attention: which kernels run, and what a new length costs": find_kernels,
    "Training: forward and backward passes": measure_training,
    "Answers: the speed of generation": measure_decoding,
    "Runs: three steps of the trainer, and their memory beside the plan": _measure_runs,
    "Several cards: what they exchange, and how they scale": measure_several_cards,
}


@click.command(context_settings={"show_default": True})
@click.option("--quick", is_flag=True, help="Fewer repetitions, contexts and layers, in about three minutes.")
@click.option(
    "--output-dir",
    type=UserPath(path_type=Path),
    default="checkpoints/card",
    help="Directory for card.md and card.json; those that it holds are replaced.",
)
def main(quick: bool, output_dir: Path) -> int:
    """Measure the card part by part. The exit status is 1 where a bound fails or a part breaks off."""
    disable_progress_bar()
    device = the_device()
    check = Check(output_dir, device, scale_for(device, quick), quick)
    for number, (title, measure) in enumerate(PARTS.items()):
        with check.part(number, title):
            measure(check)
        forget_peak(device)
    say(f"{output_dir / 'card.md'}: {check.verdict()}")
    return 1 if check.failures else 0


if __name__ == "__main__":
    run_command(main)
