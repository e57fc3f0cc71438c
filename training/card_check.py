"""Measure what the card of this machine does with our Bloom, and hold it to what it should do.

python -m training.card_check --quick --output-dir checkpoints/card

Each part writes what it found to card.md, for reading, and to card.json as it ends. It is made for ten
minutes on a card, and fewer with --quick; without a card it measures the CPU, with tiny shapes. All parts but
the one that runs the trainer need no more than torch, transformers and our Bloom, so that they also show what
another torch would do.
"""

from importlib import import_module
from pathlib import Path

import click
from transformers.utils.logging import disable_progress_bar

from training.card.page import Check
from training.card.scale import scale_for
from training.card.timing import forget_peak, the_device
from training.common.command_line import UserPath
from training.common.console import say
from training.common.errors import UserError, run_command
from training.common.files import try_write
from training.run.cards import check_cards

# The parts in their order, and the function that measures each. It is imported when its part runs: another
# torch may lack what one part needs.
PARTS = {
    "The machine": "machine.measure_machine",
    "Exactness: our Bloom and the library's": "exactness.compare_with_library",
    "Attention: which kernels run, and what a new length costs": "kernels.find_kernels",
    "Training: forward and backward passes": "training_speed.measure_training",
    "Answers: the speed of generation": "decoding.measure_decoding",
    "Runs: three steps of the trainer, and their memory beside the plan": "short_runs.measure_runs",
    "Several cards: what they exchange, and how they scale": "several_cards.measure_several_cards",
}


@click.command(context_settings={"show_default": True})
@click.option(
    "--quick", is_flag=True, help="Repeat less, with fewer contexts; 8 and 4 bits with fewer layers."
)
@click.option(
    "--output-dir",
    type=UserPath(path_type=Path),
    default="checkpoints/card",
    help="Directory for card.md and card.json; those that it holds are replaced.",
)
def main(quick: bool, output_dir: Path) -> int:
    """Measure the card part by part. The exit status is 1 where a bound fails or a part breaks off."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        try_write(output_dir)
    except OSError as error:
        raise UserError(f"--output-dir {output_dir}: {error.strerror}; give another") from None
    check_cards()
    disable_progress_bar()
    device = the_device()
    check = Check(output_dir, device, scale_for(device, quick), quick)
    for number, (title, place) in enumerate(PARTS.items()):
        with check.part(number, title):
            module, _, function = place.partition(".")
            getattr(import_module(f"training.card.{module}"), function)(check)
        forget_peak(device)
    say(f"{output_dir / 'card.md'}: {check.verdict()}")
    return 1 if check.failures else 0


if __name__ == "__main__":
    run_command(main)
