"""The ways in which our Bloom attends within the documents of a micro-batch, each to be measured."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from training.model.attention import WIDTH_MULTIPLE, attend_one_by_one, has_one_kernel

OF_EACH = "a kernel for each document"
OF_ALL = "one kernel for all documents"


def engines(device: torch.device) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """By the name of each way that this device has in bf16, a block in which our Bloom takes it."""
    if has_one_kernel(torch.empty(0, 1, WIDTH_MULTIPLE, dtype=torch.bfloat16, device=device), dropout=0.0):
        return {OF_ALL: nullcontext, OF_EACH: attend_one_by_one}
    return {OF_EACH: nullcontext}
