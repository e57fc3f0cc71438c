"""The course of the learning rate: a warm-up, and what follows it."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from training.common.console import say


def rate_factor(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """What the learning rate of optimizer step `step` (0 is the first) is multiplied by.

    The factor rises as (step + 1) / warmup_steps, so that the first step changes the weights; then it stays
    at 1, or falls to 0 at `total_steps` along a line or half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - passed if schedule == "linear" else (1.0 + math.cos(math.pi * passed)) / 2


def make_schedule(args: TrainingArguments, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The schedule that sets the optimizer's learning rates; warns of a warm-up longer than the run."""
    schedule = args.lr_scheduler_type.value
    warmup_steps = args.get_warmup_steps(total_steps)
    if warmup_steps > total_steps:
        reached = args.learning_rate * total_steps / warmup_steps
        say(
            f"WARNING: the warm-up takes {warmup_steps} steps and the run only {total_steps}: "
            f"the learning rate ends at {reached:.3g} instead of {args.learning_rate:.3g}"
        )
    return LambdaLR(optimizer, lambda step: rate_factor(step, schedule, warmup_steps, total_steps))


def apply_schedule(schedule: LambdaLR, optimizer: Optimizer, learning_rate: float) -> None:
    """Give the next step its rate by this schedule, where a checkpoint has brought another rate."""
    schedule.base_lrs = [learning_rate] * len(schedule.base_lrs)
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = learning_rate, learning_rate * factor
