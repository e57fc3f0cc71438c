"""Which examples each micro-batch of each rank holds.

Every rank computes the same list of micro-batches for the whole world, and takes every n-th of it. Each
example is seen once an epoch: nothing is repeated to make the ranks' shares equal, and nothing dropped.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class MicroBatches(Sampler[list[int]]):
    """One rank's micro-batches, as lists of indices; the empty list where the others have one more.

    batch_size: examples in each. tokens_per_batch: instead, as many examples as there is room for, by best
    fit. seed: of the order, which is another one each epoch; without it, examples stay in theirs. The number
    of micro-batches is the same in every epoch and on every rank.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        rank: int,
        world_size: int,
        seed: int | None = None,
    ) -> None:
        assert (batch_size is None) != (tokens_per_batch is None)
        assert tokens_per_batch is None or lengths.max(initial=0) <= tokens_per_batch
        self.lengths, self.batch_size, self.tokens_per_batch = lengths, batch_size, tokens_per_batch
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.epoch = 0
        self._count = -(-len(self._batches(0)) // world_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches(self.epoch)
        batches += [[]] * (-len(batches) % self.world_size)
        return iter(batches[self.rank :: self.world_size])

    def of_all_ranks(self, epoch: int, start: int, stop: int) -> list[list[int]]:
        """What the ranks together have as their micro-batches `start` to `stop` of an epoch."""
        return self._batches(epoch)[start * self.world_size : stop * self.world_size]

    def _batches(self, epoch: int) -> list[list[int]]:
        order = np.arange(len(self.lengths))
        random = None if self.seed is None else np.random.default_rng([self.seed, epoch])
        if random:
            random.shuffle(order)
        if self.tokens_per_batch:
            batches = best_fit(order, self.lengths, self.tokens_per_batch)
            if random:
                random.shuffle(batches)
            return batches
        return [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]


def best_fit(order: np.ndarray, lengths: np.ndarray, room: int) -> list[list[int]]:
    """Examples in batches of at most `room` tokens: the longest first, each where it leaves the least room.

    order decides among examples of one length, so the number of batches does not depend on it. The method is
    best fit decreasing; never more than 11/9 of the fewest batches possible, and four
    (https://doi.org/10.1137/0203025).
    """
    batches: list[list[int]] = []
    with_room: dict[int, list[list[int]]] = defaultdict(list)
    rooms: list[int] = []  # the keys of with_room that have batches, ascending
    for example in order[np.argsort(-lengths[order], kind="stable")].tolist():
        length = int(lengths[example])
        at = bisect_left(rooms, length)
        if at < len(rooms):
            left = rooms[at]
            batch = with_room[left].pop()
            if not with_room[left]:
                del rooms[at]
        else:
            left, batch = room, []
            batches.append(batch)
        batch.append(example)
        left -= length
        if not with_room[left]:
            insort(rooms, left)
        with_room[left].append(batch)
    return batches
