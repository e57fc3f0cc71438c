import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.micro_batches import MicroBatches, best_fit

LENGTHS = np.array([5, 1, 4, 4, 2, 6, 3])


def all_ranks(lengths: np.ndarray, world_size: int, epoch: int = 0, **how) -> list[list[list[int]]]:
    ranks = [MicroBatches(lengths, rank=rank, world_size=world_size, **how) for rank in range(world_size)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in ranks]


def test_without_a_seed_examples_stay_in_their_order() -> None:
    assert all_ranks(LENGTHS, 1, batch_size=3) == [[[0, 1, 2], [3, 4, 5], [6]]]
    assert all_ranks(LENGTHS, 2, batch_size=2) == [[[0, 1], [4, 5]], [[2, 3], [6]]]


def test_a_rank_without_a_share_gets_an_empty_batch() -> None:
    assert all_ranks(LENGTHS[:3], 4, batch_size=1) == [[[0]], [[1]], [[2]], [[]]]


def test_best_fit_as_by_hand() -> None:
    # 6 + 2 | 5 + 3 | 4 + 4 | 1: 3 goes beside 5, which fills the batch, and 2 beside 6; 1 finds no room
    batches = best_fit(np.arange(7), LENGTHS, room=8)
    assert sorted(map(sorted, batches)) == [[0, 6], [1], [2, 3], [4, 5]]


def test_the_order_decides_among_equals() -> None:
    lengths = np.full(4, 3)
    assert best_fit(np.array([2, 0, 3, 1]), lengths, room=6) == [[2, 0], [3, 1]]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=200),
    world_size=st.integers(1, 5),
    tokens=st.sampled_from([None, 30, 31, 64]),
    seed=st.integers(0, 3),
)
def test_every_example_once_an_epoch_on_one_rank(
    lengths: list[int], world_size: int, tokens: int | None, seed: int
) -> None:
    lengths = np.array(lengths)
    how = {"tokens_per_batch": tokens} if tokens else {"batch_size": 3}
    for epoch in (0, 1):
        ranks = all_ranks(lengths, world_size, epoch, seed=seed, **how)
        assert len({len(batches) for batches in ranks}) == 1
        assert len(ranks[0]) == len(MicroBatches(lengths, rank=0, world_size=world_size, seed=seed, **how))
        batches = [batch for rank in ranks for batch in rank]
        assert sorted(example for batch in batches for example in batch) == list(range(len(lengths)))
        assert sum(not batch for batch in batches) < world_size
        for batch in batches:
            assert lengths[batch].sum() <= tokens if tokens else len(batch) <= 3
    # two batches that fit into one would be one
    if tokens:
        totals = sorted(int(lengths[batch].sum()) for batch in batches if batch)
        assert len(totals) == 1 or totals[0] + totals[1] > tokens


@pytest.mark.parametrize("how", [{"batch_size": 8}, {"tokens_per_batch": 600}])
def test_epochs_differ_and_come_again(how: dict) -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 1000)
    first, second = (all_ranks(lengths, 2, epoch, seed=7, **how) for epoch in (0, 1))
    assert first != second
    assert first == all_ranks(lengths, 2, 0, seed=7, **how)
    assert first != all_ranks(lengths, 2, 0, seed=8, **how)


def test_best_fit_leaves_little_room_on_lengths_like_real_ones() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 20_000).astype(int), 1, 2048)
    batches = best_fit(np.arange(len(lengths)), lengths, room=4096)
    assert lengths.sum() / (len(batches) * 4096) > 0.99
