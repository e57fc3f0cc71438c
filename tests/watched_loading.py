"""The trainer, which writes what its rank holds of the weights while they are loaded and right after.

WATCHED_LOADING=DIRECTORY deepspeed --num_gpus=2 --module tests.watched_loading ...
"""

import json
import os
from pathlib import Path

import deepspeed
import torch

from training import trainer
from training.common.errors import run_command
from training.model.load import load_model

# How many weights were gathered in full at a time.
whole_at_once: list[int] = []


class Gathered(deepspeed.zero.GatheredParameters):
    def __enter__(self) -> None:
        super().__enter__()
        if self.enabled:
            whole_at_once.append(sum(weight.numel() for weight in self.params))


def watched_load_model(*args, **kwargs) -> torch.nn.Module:
    deepspeed.zero.GatheredParameters = Gathered
    model = load_model(*args, **kwargs)
    held = {
        name: {
            "shape": list(weight.ds_shape) if hasattr(weight, "ds_id") else list(weight.shape),
            "whole": weight.numel(),
            "share": weight.ds_tensor.numel() if hasattr(weight, "ds_id") else 0,
        }
        for name, weight in model.named_parameters()
    }
    path = Path(os.environ["WATCHED_LOADING"], f"rank-{os.environ['RANK']}.json")
    # Loading must leave nothing behind that divides the weights of other modules.
    other = list(torch.nn.Linear(4, 4).to(torch.float64).weight.shape)
    path.write_text(json.dumps({"held": held, "most at once": max(whole_at_once), "another": other}))
    return model


if __name__ == "__main__":
    trainer.load_model = watched_load_model
    run_command(trainer.main)
