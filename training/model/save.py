"""The saved model: a directory that plain transformers loads, complete or not there."""

import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

# The same for the model at the root of the run directory.
INCOMPLETE_MODEL = ".incomplete-model"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what plain transformers loads: weights, configurations, tokenizer with chat template.

    state_dict: the weights, where they are not those in `model` (ZeRO-3 gathers them). A tied head is written
    once. Readers look for config.json, so it goes first and is put in place last; files have mode 0644.
    """
    directory = Path(directory)
    written = directory / INCOMPLETE_MODEL
    shutil.rmtree(written, ignore_errors=True)
    model.config.use_cache = True
    model.save_pretrained(written, state_dict=untied(model, state_dict or model.state_dict()))
    tokenizer.save_pretrained(written)
    (directory / "config.json").unlink(missing_ok=True)
    for file in sorted(written.iterdir(), key=lambda file: file.name == "config.json"):
        file.chmod(0o644)
        shutil.move(file, directory / file.name)
    written.rmdir()


def untied(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight once, in memory of its own: ZeRO-2's are slices of one buffer."""
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items() if name not in tied}
