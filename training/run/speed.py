"""How fast a run is, and how fast the machine's matrix products would allow it to be."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from training.consts import NOT_SUPERVISED
from training.cost.flops import Tokens

# Products of this width reach what a machine can do; where that takes too long, smaller ones are measured.
LARGEST_PRODUCT = 8192
SMALLEST_PRODUCT = 128


def count_tokens(batch: Mapping[str, torch.Tensor]) -> Tokens:
    """The tokens of a batch that a collator of `training.data.collate` made, by their kinds."""
    lengths = batch["document_lengths"] if "document_lengths" in batch else batch["attention_mask"].sum(dim=1)
    total = int(lengths.sum())
    return Tokens(
        total=total,
        supervised=int((batch["labels"] != NOT_SUPERVISED).sum()),
        padding=batch["input_ids"].numel() - total,
        pairs=int((lengths * (lengths + 1) // 2).sum()),
    )


def product_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """The most that this process reaches in a product of two square matrices, measured for about `seconds`.

    It is the fastest of the three products that a linear layer makes, one forward and two backward: some
    processors lay out bfloat16 for one of them ten times as slowly as for another.
    """
    # How many random numbers are drawn here depends on the time, so the run's own generator is left alone.
    generator = torch.Generator(device).manual_seed(0)
    size, best = SMALLEST_PRODUCT, 0.0
    while True:
        a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        slowest = 0.0
        for left, right in ((a, b), (a, b.T), (a.T, b)):
            _seconds_of(left, right, 1)  # not timed: the first product also sets things up
            spent = _seconds_of(left, right, 1)
            slowest = max(slowest, spent)
            if 2 * size**3 / spent > best:
                best, fastest = 2 * size**3 / spent, (left, right, spent)
        if size == LARGEST_PRODUCT or 48 * slowest > seconds:  # the next three have 8 times the FLOPs
            break
        size *= 2
    left, right, spent = fastest
    times = max(1, round(seconds / spent))
    return 2 * len(left) ** 3 * times / _seconds_of(left, right, times)


def _seconds_of(left: torch.Tensor, right: torch.Tensor, times: int) -> float:
    _synchronize(left.device)
    start = time.perf_counter()
    for _ in range(times):
        left @ right
    _synchronize(left.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Throughput:
    """Counts the tokens of this rank, and the seconds that they take, since the last `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.tokens = Tokens()
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    def pause(self) -> None:
        """Stop the clock for what is no training step: an evaluation, or a checkpoint."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Start the clock again after `pause`."""
        self._since += time.perf_counter() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock during the block."""
        self.pause()
        try:
            yield
        finally:
            self.go_on()
