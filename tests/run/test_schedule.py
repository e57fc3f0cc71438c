"""The course of the learning rate, as it is drawn, and as DeepSpeed's own class sets it."""

import math

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupLR

from training.run.schedule import rate_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, *((1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))]),
    ],
)
def test_the_schedules_as_drawn(schedule: str, expected: list[float]) -> None:
    factors = [rate_factor(step, schedule, warmup_steps=4, total_steps=8) for step in range(8)]
    assert factors == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rate_factor(0, "cosine", warmup_steps=0, total_steps=8) == 1


def deepspeed_rates(rate: float, warmup_steps: int, steps: int) -> list[float]:
    """The rate of each optimizer step, as DeepSpeed's engine drives its class: a step of the schedule after
    each of the optimizer."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedule = WarmupLR(optimizer, warmup_min_lr=0.0, warmup_max_lr=rate, warmup_num_steps=warmup_steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [1, 2, 3, 100])
def test_a_log_warm_up_has_the_rates_of_deepspeeds_class(warmup_steps: int) -> None:
    ours = [5e-7 * rate_factor(step, "constant", warmup_steps, 150, "log") for step in range(150)]
    assert ours == pytest.approx(deepspeed_rates(5e-7, warmup_steps, 150), rel=1e-12, abs=0)
    assert ours[:2] == [0, 0]
    assert ours[-1] == 5e-7


def test_no_warm_up_is_none_in_either_shape_though_deepspeeds_class_refuses_it() -> None:
    with pytest.raises(ValueError, match="must be a positive integer"):
        deepspeed_rates(1.0, 0, 1)
    for shape in ("linear", "log"):
        assert [rate_factor(step, "constant", 0, 8, shape) for step in range(3)] == [1, 1, 1]


def test_after_a_log_warm_up_the_rate_falls_as_after_a_linear_one() -> None:
    factors = [rate_factor(step, "linear", 4, 8, "log") for step in range(8)]
    assert factors == pytest.approx([0, 0, 0.5, math.log(3) / math.log(4), 1, 0.75, 0.5, 0.25])


def test_the_summed_rates_of_the_original_command() -> None:
    """Over its 100 steps the two shapes differ by half; the sums are those that the page states."""
    sums = {
        shape: sum(rate_factor(step, "constant", 100, 100, shape) for step in range(100))
        for shape in ("linear", "log")
    }
    assert sums == pytest.approx({"linear": 50.5, "log": math.log(math.factorial(99)) / math.log(100)})
    assert round(sums["log"], 1) == 78.0
