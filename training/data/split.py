"""Which rows are trained on, how often, and which are held out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Split(NamedTuple):
    """Which rows, by their number over all files, are trained on and which are held out."""

    train: list[int]  # in order, and as often as they are seen in an epoch
    held_out: list[int]
    taken: list[int]  # how many rows are seen of each file, the repeated ones as often as they are
    wanted: int  # how many were to be held out
    moved: int  # how many changed sides so that all rows with one prompt are on the same


def held_out_count(rows: int, test_size: int | float) -> int:
    """How many of `rows` to hold out: the count, or the ratio of them, at least one.

    Where that leaves nothing to train on, a tenth.
    """
    count = max(1, round(rows * test_size)) if isinstance(test_size, float) else test_size
    return count if count < rows else rows // 10


def split(
    prompts: Sequence[np.ndarray], weights: Sequence[float], test_size: int | float, seed: int
) -> Split:
    """Take from each file as many rows as its weight says, and hold some of them out, at random by `seed`.

    `prompts` has for each file the hashes of its rows' prompts. Rows with the same prompt are all held out or
    all trained on; trained on where they are more than there is still room for. A row is held out once.
    """
    times = sample([len(file) for file in prompts], weights, seed)
    numbers = np.flatnonzero(np.concatenate(times))
    wanted = held_out_count(len(numbers), test_size)
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).numpy()
    numbers = numbers[shuffled]
    is_held_out = _choose(np.concatenate(prompts)[numbers], wanted)
    train = np.sort(numbers[~is_held_out])
    return Split(
        train=np.repeat(train, np.concatenate(times)[train]).tolist(),
        held_out=np.sort(numbers[is_held_out]).tolist(),
        taken=[int(of_file.sum()) for of_file in times],
        wanted=wanted,
        moved=int(np.count_nonzero(is_held_out != (np.arange(len(numbers)) < wanted))),
    )


def sample(sizes: Sequence[int], weights: Sequence[float], seed: int) -> list[np.ndarray]:
    """For each file, how often each of its rows is seen: `weight` times on average.

    A weight of 0.5 takes a random half of the rows, one of 2.5 each row twice and a random half once more.
    """
    random = np.random.default_rng(seed)
    times = []
    for size, weight in zip(sizes, weights, strict=True):
        whole = int(weight)
        of_file = np.full(size, whole)
        of_file[random.permutation(size)[: round((weight - whole) * size)]] += 1
        times.append(of_file)
    return times


def _choose(groups: np.ndarray, room: int) -> np.ndarray:
    """Which of some elements to choose: `room` of them, the first ones if each group has one element only.

    Groups are taken whole, in the order of their first elements, and passed over where there is no room left.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    members = np.argsort(group_of, kind="stable")
    chosen = np.zeros(len(groups), dtype=bool)
    looked_at = np.zeros(len(sizes), dtype=bool)
    for group in group_of:
        if room == 0:
            break
        if not looked_at[group] and sizes[group] <= room:
            chosen[members[ends[group] - sizes[group] : ends[group]]] = True
            room -= sizes[group]
        looked_at[group] = True
    return chosen
