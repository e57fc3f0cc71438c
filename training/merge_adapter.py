"""Merge an adapter into its base model: the result is a plain model that needs neither peft nor the base.

python -m training.merge_adapter --adapter checkpoints/my-lora --output-dir checkpoints/my-model
"""

from pathlib import Path

import click

from training.common.command_line import ModelPath, UserPath
from training.common.console import quiet_libraries
from training.common.errors import UserError, run_command
from training.common.files import check_empty, write_failure_refused
from training.common.hub import RECORD, check_base_model, check_model_path, is_adapter, model_name
from training.common.modelscope import local_path
from training.model.context import note_context
from training.model.lora import base_of, load_any
from training.model.model_card import taught_before, write_model_card
from training.model.save import save_model
from training.run.record import read_record
from training.text.tokenizer import load_tokenizer


@click.command()
@click.option("--adapter", type=ModelPath(), required=True, help="A run with --lora-rank, or an adapter.")
@click.option(
    "--base",
    type=ModelPath(),
    help="Base model, if it is no longer where it was.",
    show_default="the one trained on",
)
@click.option(
    "--output-dir", required=True, type=UserPath(file_okay=False, path_type=Path), help="New directory."
)
def main(adapter: str, base: str | None, output_dir: Path) -> None:
    """Merge an adapter into its base model's weights, in the precision that those were saved in."""
    quiet_libraries()
    check_model_path(adapter)
    if not is_adapter(local_path(adapter)):
        raise UserError(f"{adapter}: a whole model already, no adapter")
    base = base or base_of(adapter)
    check_base_model(base)
    check_empty(output_dir, "give another --output-dir")
    tokenizer = load_tokenizer(adapter)
    model = load_any(adapter, tokenizer, base=base)
    note_context(model.config, longest_row_of_run(Path(adapter)))
    with write_failure_refused(output_dir, "make room, or give another --output-dir"):
        save_model(model, tokenizer, output_dir)
        made = f" with the adapter `{model_name(adapter)}` merged into its weights"
        write_model_card(output_dir, tokenizer, base, made, taught_before(adapter))
    print(f"{output_dir}: {base} with {adapter}; talk to it: python -m inference.chat --model {output_dir}")


def longest_row_of_run(adapter: Path) -> int:
    """The tokens that a row might have in an adapter's run, or 0 where the run's record is not there."""
    for directory in (adapter.absolute(), adapter.absolute().parent):
        if (directory / RECORD).is_file():
            return int(read_record(directory)["options"]["max_length"])
    return 0


if __name__ == "__main__":
    run_command(main)
