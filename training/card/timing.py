"""Seconds and bytes, on a card or on a CPU."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch


def the_device() -> torch.device:
    """The first card that torch can use, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given to do."""
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The seconds until the device has done `work`."""
    wait_for(device)
    start = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], device: torch.device, times: int) -> float:
    """The median of the seconds of `work`, after a first time that sets things up."""
    seconds_of(work, device)
    return statistics.median(seconds_of(work, device) for _ in range(times))


def forget_peak(device: torch.device) -> None:
    """Let go of what is not used any more, and begin to look for the peak anew."""
    gc.collect()
    if device.type != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were allocated on a card since `forget_peak`; on a CPU, of the whole process."""
    if device.type != "cpu":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_text(device: torch.device) -> str:
    """The peak of a card as the end of a note; a CPU has none that belongs to one measurement."""
    return "" if device.type == "cpu" else f", peak {peak_bytes(device) / 1e9:.3g} GB"
