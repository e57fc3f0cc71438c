"""The saved model: a directory that plain transformers loads, complete or not there."""

import os
import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.common.files import place_files

# Where a model is written until all of it is there, within its directory.
INCOMPLETE_MODEL = ".incomplete-model"


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: str | os.PathLike,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write what plain transformers loads: weights, configurations, tokenizer with chat template.

    state_dict: the weights, where they are not those in `model` (ZeRO-3 gathers them). A tied head is written
    once. All files are written aside and then placed, config.json last, since readers look for it. An earlier
    model in `directory` is replaced.
    """
    directory = Path(directory)
    staging = directory / INCOMPLETE_MODEL
    shutil.rmtree(staging, ignore_errors=True)
    model.config.use_cache = True
    model.save_pretrained(staging, state_dict=untied_weights(model, state_dict or model.state_dict()))
    tokenizer.save_pretrained(staging)
    place_files(staging, directory, last="config.json")


def untied_weights(model: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each weight once, copied into memory of its own, since ZeRO-2's weights are slices of one buffer."""
    names = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    return {name: tensor.detach().cpu().clone() for name, tensor in state_dict.items() if name not in tied}
