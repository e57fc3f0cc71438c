"""Measure what the card of this machine does with our Bloom, and hold it to what it should do.

python -m training.card_check --quick --output-dir checkpoints/card

Each part writes what it found to card.md, for reading, and to card.json as it ends. It takes ten minutes on a
card, and less with --quick; without a card it measures the CPU, with tiny shapes. All parts but those that
train need no more than torch, transformers and our Bloom, so they also show what another torch would do.
"""

from pathlib import Path

import click

from training.card.exactness import compare_with_library
from training.card.machine import measure_machine
from training.card.page import Check
from training.card.scale import scale_for
from training.card.timing import forget_peak, the_device
from training.common.command_line import UserPath
from training.common.console import say
from training.common.errors import UserError, run_command

PARTS = {
    "The machine": measure_machine,
    "Exactness: our Bloom and the library's": compare_with_library,
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
