"""How fast a run is, and how fast the machine's matrix products would allow it to be."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import Trainer

from training.common.console import say
from training.consts import NOT_SUPERVISED
from training.cost.flops import Tokens, matrix_products

# Seconds for which a run measures how fast the machine multiplies, at its start.
MEASURED_SECONDS = 0.5

# Products of this width reach what a machine can do; where that takes too long, smaller ones are measured.
LARGEST_PRODUCT = 8192
SMALLEST_PRODUCT = 128

# On a busy machine each product waits for its threads, a narrow one for most of its time. So up to this width
# the measuring may take longer than it should.
TELLING_PRODUCT = 1024

# The fastest product is taken for what the machine can do where the second fastest reaches this share of it;
# until then the measuring goes on, at most so many times as long as it should.
AGREEMENT, PATIENCE = 0.8, 6


def count_tokens(batch: Mapping[str, torch.Tensor]) -> Tokens:
    """The tokens of a batch that a collator of `training.data.collate` made, by their kinds."""
    is_packed = "document_lengths" in batch
    lengths = torch.as_tensor(batch["document_lengths"]) if is_packed else batch["attention_mask"].sum(dim=1)
    total = int(lengths.sum())
    return Tokens(
        total=total,
        supervised=int((batch["labels"] != NOT_SUPERVISED).sum()),
        padding=batch["input_ids"].numel() - total,
        pairs=int((lengths * (lengths + 1) // 2).sum()),
    )


def product_flops_per_second(dtype: torch.dtype, device: torch.device, seconds: float) -> float | None:
    """The most that this process reaches in a product of two square matrices, measured for about `seconds`.

    It is the fastest of the three products that a linear layer makes, one forward and two backward: some
    processors lay out bfloat16 for one of them ten times as slowly as for another. Other work on the machine
    only ever makes a product slower. So each is timed on its own, several times, and the fastest counts; None
    where no second one comes near it.
    """
    # How many random numbers are drawn here depends on the time, so the run's own generator is left alone.
    generator = torch.Generator(device).manual_seed(0)
    start, size, rates, narrower = time.perf_counter(), SMALLEST_PRODUCT, [], math.inf
    while True:
        a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        slowest = 0.0
        for left, right in ((a, b), (a, b.T), (a.T, b)):
            _seconds_of_product(left, right)  # not counted: the first product also sets things up
            times = [_seconds_of_product(left, right) for _ in range(3)]
            rates += [2 * size**3 / spent for spent in times]
            slowest = max(slowest, min(times))
        gone = time.perf_counter() - start
        limit = seconds if size >= TELLING_PRODUCT else PATIENCE * seconds
        growth = min(8, max(1, slowest / narrower))  # of a product's time; of its FLOPs it is 8
        if size < LARGEST_PRODUCT and gone + 12 * growth * slowest < limit:
            size, narrower = 2 * size, slowest
            continue
        second, first = sorted(rates)[-2:]
        if gone > seconds and second >= AGREEMENT * first:
            return first
        if gone > PATIENCE * seconds:
            return None


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    _synchronize(left.device)
    start = time.perf_counter()
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


class Speed:
    """What a run's log entries say of its speed. For all ranks together.

    throughput: counts this rank's tokens since the last log entry.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.throughput = Throughput()
        self._matrix_products = matrix_products(trainer.model)

    def start(self) -> None:
        """Measure and say how fast the machine multiplies, and begin to count."""
        args = self._trainer.args
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        self._bound = self._measured_products(dtype)
        if self._bound is not None:
            say(
                f"{args.world_size} process(es) multiply {str(dtype).removeprefix('torch.')} matrices at "
                f"{self._bound / 1e12:.3g} TFLOP/s together"
            )
        if self._bound is not None and args.bf16 and args.device.type == "cpu":
            in_float32 = self._measured_products(torch.float32)
            if in_float32 is not None and in_float32 > 2 * self._bound:
                say(
                    f"WARNING: in float32 it is {in_float32 / 1e12:.3g} TFLOP/s: this processor has no "
                    "instructions for bfloat16; --no-bf16 takes twice the memory, and less time"
                )
        self._first_entry: tuple[int, float] | None = None
        self.throughput.reset()

    def entry(self) -> dict[str, float]:
        """The speed of all ranks since the last log entry.

        "seconds_left" assumes the mean speed since this process's first entry, which has none: the steps
        before it also set things up. "matrix_product_share" is left out where it cannot be right: where the
        bound is unknown, or lower than what the run itself reaches.
        """
        sum_over_ranks, state = self._trainer.sum_over_ranks, self._trainer.state
        *counts, seconds = sum_over_ranks(*self.throughput.tokens, self.throughput.seconds)
        self.throughput.reset()
        tokens, seconds = Tokens(*map(int, counts)), seconds / self._trainer.args.world_size
        entry = {
            "learnt_tokens_per_second": tokens.supervised / seconds,
            "tokens_per_second": tokens.total / seconds,
            "padding_share": tokens.padding / (tokens.total + tokens.padding),
        }
        if self._bound is not None:
            share = self._matrix_products.flops(tokens) / seconds / self._bound
            if share <= 1:
                entry["matrix_product_share"] = share
        if self._first_entry is None:
            self._first_entry = state.global_step, time.perf_counter()
        else:
            first_step, first_time = self._first_entry
            seconds_a_step = (time.perf_counter() - first_time) / (state.global_step - first_step)
            entry["seconds_left"] = seconds_a_step * (state.max_steps - state.global_step)
        return entry

    def _measured_products(self, dtype: torch.dtype) -> float | None:
        """What all ranks reach together, or None where one of them could not tell."""
        args = self._trainer.args
        self._trainer.accelerator.wait_for_everyone()  # ranks of one machine share it: all measure at once
        here = product_flops_per_second(dtype, args.device, MEASURED_SECONDS)
        [together] = self._trainer.sum_over_ranks(math.nan if here is None else here)
        return None if math.isnan(together) else together
