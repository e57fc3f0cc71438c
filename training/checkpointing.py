"""The run directory, and the model that is written into it."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from training.errors import UserError

# Where a model stands until all of it is written.
INCOMPLETE_MODEL = ".incomplete-model"


def check_run_dir(path: Path) -> None:
    """Raise UserError unless `path` can be made, or is empty and can be written. Leaves no trace."""
    existing = path
    while not os.path.exists(existing):  # unlike Path.exists, quiet about a parent that may not be read
        existing = existing.parent
    try:
        if existing == path and os.listdir(path):
            raise UserError(
                f"{path}: holds something already, and is not written over; give another --run-name"
            )
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({existing}: {error.strerror})") from None


class SaveTokenizer(TrainerCallback):
    """Put the tokenizer into each checkpoint, so that one can talk to it.

    transformers would do so itself, but set the model's padding and bos tokens after the tokenizer's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self.tokenizer.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def export_model(trainer: Trainer, tokenizer: PreTrainedTokenizerFast, run_dir: Path) -> None:
    """Save the trained model at the root of its run directory, in bf16 after a bf16 run. For all ranks."""
    zero3 = trainer.is_deepspeed_enabled and trainer.deepspeed.zero_optimization_partition_weights()
    state_dict = trainer.accelerator.get_state_dict(trainer.deepspeed) if zero3 else None
    if trainer.args.bf16 and not trainer.is_deepspeed_enabled:
        trainer.model.to(torch.bfloat16)
    if trainer.is_world_process_zero():
        save_model(trainer.model, tokenizer, run_dir, state_dict)
    trainer.accelerator.wait_for_everyone()


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what plain transformers loads: weights, configurations, tokenizer with chat template.

    state_dict: the weights, where they are not those in `model` (ZeRO-3 gathers them). A tied head is written
    once. Readers look for config.json, so it is put in place last; files have mode 0644.
    """
    directory = Path(directory)
    written = directory / INCOMPLETE_MODEL
    model.config.use_cache = True
    model.save_pretrained(written, state_dict=untied(model, state_dict or model.state_dict()))
    tokenizer.save_pretrained(written)
    for file in sorted(written.iterdir(), key=lambda file: file.name == "config.json"):
        file.chmod(0o644)
        shutil.move(file, directory / file.name)
    written.rmdir()


def untied(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight once, in memory of its own: ZeRO-2's are slices of one buffer."""
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items() if name not in tied}
