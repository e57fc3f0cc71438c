"""What torch's profiler says of a piece of work: where its time goes, and which attention it runs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

# What time goes to, by what the operations' names have in them; the first that fits counts.
KINDS = {
    "attention": ("attention", "attn", "flash", "fmha", "cudnn"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm"),
    "copies": ("::copy_", "::cat", "::fill_", "::zero_"),
    "the rest": ("",),
}


class Spent(NamedTuple):
    """Where the time of a piece of work goes."""

    busy: float  # seconds in which the device works; 0 where the profiler may not watch a card
    shares: str  # of the kinds of work, in words


def where_time_goes(work: Callable[[], object], seconds: float, on_card: bool) -> Spent:
    """What `work`, which takes `seconds`, spends them on; on a card, also waiting for the host."""
    spent = dict.fromkeys(KINDS, 0.0)
    for event in _events(work, on_card):
        kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
        if event.device_type == torch.autograd.DeviceType.CPU:  # a kernel is counted with its operation
            spent[kind] += event.self_device_time_total if on_card else event.self_cpu_time_total
    busy = sum(spent.values()) / 1e6
    if not busy:
        return Spent(0.0, "unknown: the profiler may not watch the card here")
    shares = [f"{kind} {microseconds / busy / 1e6:.0%}" for kind, microseconds in spent.items()]
    if on_card:
        shares.append(f"of all the time the card waits {max(0.0, 1 - busy / seconds):.0%}")
    return Spent(busy, ", ".join(shares))


def attention_operations(work: Callable[[], object], on_card: bool) -> dict[str, int]:
    """The operations and kernels of attention that `work` runs, and how often each of them runs."""
    return {
        event.key: event.count
        for event in _events(work, on_card)
        if any(part in event.key.lower() for part in KINDS["attention"])
    }


def _events(work: Callable[[], object], on_card: bool) -> list:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as profiled:
        work()
        if on_card:
            torch.cuda.synchronize()
    return list(profiled.key_averages())
