"""Which rows are trained on, how often, and which are held out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from training.data.groups import TRAINED


class Split(NamedTuple):
    """The rows that are trained on and those that are held out, as numbers that count on over all files."""

    train: list[int]  # in order; a row that an epoch repeats is listed as often
    held_out: list[int]
    rows_per_epoch: list[int]  # for each file, how many rows are trained on, repetitions included
    left_out_count: int  # how many rows are neither trained on nor held out, since a weight is below 1
    asked_count: int  # how many rows `test_size` asked for
    wanted_count: int  # how many rows were to be held out
    bound_count: int  # how many rows could not be held out, their group being TRAINED
    moved_count: int  # how many rows changed sides, so that the rows of each group are on the same side


def asked_count(rows: int, test_size: int | float) -> int:
    """How many of `rows` a `test_size` asks for. A ratio asks for one row at least."""
    return max(1, round(rows * test_size)) if isinstance(test_size, float) else test_size


def held_out_count(rows: int, test_size: int | float) -> int:
    """How many of `rows` to hold out: as `test_size` says, or a tenth where that leaves none to train on."""
    count = asked_count(rows, test_size)
    return count if count < rows else rows // 10


def split(groups: Sequence[np.ndarray], weights: Sequence[float], test_size: int | float, seed: int) -> Split:
    """Take from each file as many rows as its weight says, and hold some of them out, at random by `seed`.

    groups: for each file, the group of each of its rows, or TRAINED. The rows of a group are either all held
    out or all trained on; they are trained on if there are more of them than are still to be held out. A row
    that is seen several times is held out once.
    """
    sizes = [len(file) for file in groups]
    times = np.concatenate(repetitions(sizes, weights, seed))
    numbers = np.flatnonzero(times)
    wanted = held_out_count(len(numbers), test_size)
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).numpy()
    numbers = numbers[shuffled]
    group_of = np.concatenate(groups)[numbers]
    is_held_out = _choose(group_of, wanted)
    train = np.sort(numbers[~is_held_out])
    train = np.repeat(train, times[train])
    file_of = np.repeat(np.arange(len(sizes)), sizes)
    return Split(
        train=train.tolist(),
        held_out=np.sort(numbers[is_held_out]).tolist(),
        rows_per_epoch=np.bincount(file_of[train], minlength=len(sizes)).tolist(),
        left_out_count=len(times) - len(numbers),
        asked_count=asked_count(len(numbers), test_size),
        wanted_count=wanted,
        bound_count=int(np.count_nonzero(group_of == TRAINED)),
        moved_count=int(np.count_nonzero(is_held_out != (np.arange(len(numbers)) < wanted))),
    )


def repetitions(sizes: Sequence[int], weights: Sequence[float], seed: int) -> list[np.ndarray]:
    """How often each row of each file is seen in an epoch: on average as often as the file's weight says.

    A weight of 0.5 takes a random half of the rows; a weight of 2.5 takes each row twice, and a random half
    of them once more. Returns an array of integers for each file, one for each row.
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
    """Choose `room` elements, or fewer, so that all elements of a group are chosen, or none.

    groups: the group of each element, or TRAINED for one that is not to be chosen. Groups are taken in the
    order of their first elements; one that has more elements than there is room left is passed over. Returns
    a boolean for each element.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    members = np.argsort(group_of, kind="stable")
    chosen = np.zeros(len(groups), dtype=bool)
    looked_at = np.zeros(len(sizes), dtype=bool)
    looked_at[group_of[groups == TRAINED]] = True
    for group in group_of:
        if room == 0:
            break
        if not looked_at[group] and sizes[group] <= room:
            chosen[members[ends[group] - sizes[group] : ends[group]]] = True
            room -= int(sizes[group])
        looked_at[group] = True
    return chosen
