"""The course of the learning rate: a warm-up, and what follows it."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from training.common.console import say

# By the logarithm the rate cannot rise in a single step, since its logarithm is 0: that warm-up takes two.
LOG_WARMUP_LEAST = 2


def rate_factor(
    step: int, schedule: str, warmup_steps: int, total_steps: int, warmup_shape: str = "linear"
) -> float:
    """What the learning rate of optimizer step `step` (0 is the first) is multiplied by.

    In a linear warm-up the factor is (step + 1) / warmup_steps, so that the first step changes the weights.
    In a logarithmic one it is log(step) / log(warmup_steps), and 0 in the first two steps, which is what
    DeepSpeed's WarmupLR sets; it takes two steps at least, as there. Without warm-up steps either has none.
    Then the factor stays at 1, or falls to 0 at `total_steps` along a line or half a cosine.
    """
    is_log = warmup_shape == "log" and warmup_steps > 0
    warmup_steps = max(LOG_WARMUP_LEAST, warmup_steps) if is_log else warmup_steps
    if step < warmup_steps:
        return math.log(max(1, step)) / math.log(warmup_steps) if is_log else (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - passed if schedule == "linear" else (1.0 + math.cos(math.pi * passed)) / 2


def make_schedule(
    args: TrainingArguments, optimizer: Optimizer, total_steps: int, warmup_shape: str
) -> LambdaLR:
    """The schedule that sets the optimizer's learning rates; warns of a run that ends below its rate."""
    warmup_steps = args.get_warmup_steps(total_steps)

    def factor(step: int, schedule: str = args.lr_scheduler_type.value) -> float:
        return rate_factor(step, schedule, warmup_steps, total_steps, warmup_shape)

    reached = factor(total_steps - 1, "constant")
    if reached < 1:
        say(
            f"WARNING: the warm-up takes {warmup_steps} steps and the run only {total_steps}: the learning "
            f"rate ends at {args.learning_rate * reached:.3g} instead of {args.learning_rate:.3g}"
        )
    return LambdaLR(optimizer, factor)


def apply_schedule(schedule: LambdaLR, optimizer: Optimizer, learning_rate: float) -> None:
    """Give the next step its rate by this schedule, where a checkpoint has brought another rate."""
    schedule.base_lrs = [learning_rate] * len(schedule.base_lrs)
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = learning_rate, learning_rate * factor
