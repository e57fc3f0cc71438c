"""Which examples each micro-batch of each rank holds.

Every rank computes the same list of micro-batches for all ranks; of n ranks, each takes every n-th of them.
Each example is seen once an epoch: none is repeated, and none dropped, to make the ranks' shares equal.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class MicroBatches(Sampler[list[int]]):
    """The micro-batches of one rank, as lists of indices of examples.

    lengths: the tokens of each example, (examples,). batch_size: how many examples a micro-batch has.
    tokens_per_batch, instead of it: how many tokens a micro-batch has at most; `best_fit` then chooses its
    examples. seed: for the order of examples, which differs from epoch to epoch; without a seed they stay in
    order. The number of micro-batches is the same in every epoch and on every rank: a rank without a share of
    the last ones gets an empty list.
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

    def longest(self, epochs: int, padded: bool) -> list[int]:
        """The micro-batch of this rank with the most tokens in the first `epochs` epochs.

        padded: whether each example takes as many tokens as the longest one of its micro-batch.
        """

        def tokens(batch: list[int]) -> int:
            lengths = self.lengths[batch]
            return int(lengths.max(initial=0)) * len(batch) if padded else int(lengths.sum())

        batches = (
            batch for epoch in range(epochs) for batch in self._batches(epoch)[self.rank :: self.world_size]
        )
        return max(batches, key=tokens, default=[])

    def of_all_ranks(self, epoch: int, start: int, stop: int) -> list[list[int]]:
        """The micro-batches `start` to `stop` (not included) of an epoch, of all ranks together."""
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
        assert self.batch_size is not None
        return [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]


def best_fit(order: np.ndarray, lengths: np.ndarray, room: int) -> list[list[int]]:
    """Pack examples into batches of at most `room` tokens, by the method called best fit decreasing.

    The longest example comes first, and each goes into the batch where it leaves the least room. `order`
    decides only among examples of one length, so the number of batches does not depend on it. If the fewest
    batches possible are n, the method makes at most 11/9 n + 4 (https://doi.org/10.1137/0203025).
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
