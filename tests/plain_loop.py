"""Training without Trainer and DeepSpeed; `training.run.sft_trainer` has to give the same losses and norms.

One step takes several micro-batches: those of an accumulation, of several ranks, or of both:

    examples -> collate -> forward -> loss, divided by the supervised tokens of the whole step -> backward
    -> gradients, clipped to a norm of 1 -> AdamW -> schedule
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from training.consts import NOT_SUPERVISED

Batch = dict[str, torch.Tensor]


class Step(NamedTuple):
    loss: float  # the mean over the supervised tokens of the step
    grad_norm: float  # before clipping


def train(
    model: PreTrainedModel,
    steps: Iterable[Sequence[Sequence[dict]]],
    collate: Callable[[Sequence[dict]], Batch],
    learning_rate: float,
    schedule_of: Callable[[torch.optim.Optimizer], LRScheduler],
) -> list[Step]:
    """Take the steps, each of which is given as its micro-batches of examples.

    schedule_of: makes the schedule that sets the optimizer's learning rate for the first step, and then by
    each call of its `step` for the next one.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)
    schedule = schedule_of(optimizer)
    model.train()
    taken = []
    for micro_batches in steps:
        batches = [collate(examples) for examples in micro_batches]
        supervised = [int((batch["labels"] != NOT_SUPERVISED).sum()) for batch in batches]
        loss_of_step = 0.0
        for batch, tokens in zip(batches, supervised, strict=True):
            mean_of_batch = model(**batch).loss
            loss = mean_of_batch * tokens / sum(supervised)
            loss.backward()  # adds to the gradients of the micro-batches before
            loss_of_step += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        taken.append(Step(loss_of_step, norm.item()))
    return taken
