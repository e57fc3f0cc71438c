import numpy as np
import pytest

from training.common.option_texts import Source, parse_count_or_share, parse_source
from training.data.groups import TRAINED
from training.data.split import held_out_count, repetitions, split


def hashes(*prompts: int) -> np.ndarray:
    return np.array(prompts, dtype=np.uint64)


@pytest.mark.parametrize(
    ("value", "size"), [("0", 0), ("400", 400), ("0.05", 0.05), ("1e-2", 0.01), ("0.5", 0.5)]
)
def test_test_size_is_a_count_or_a_ratio(value: str, size: float) -> None:
    assert parse_count_or_share(value) == size
    assert type(parse_count_or_share(value)) is type(size)


@pytest.mark.parametrize("value", ["2.5", "-1", "1.0", "0.0", "nan", "inf", "many", ""])
def test_any_other_test_size_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match="neither a count"):
        parse_count_or_share(value)


@pytest.mark.parametrize(
    ("rows", "size", "count"),
    [(132, 0, 0), (132, 131, 131), (132, 132, 13), (132, 400, 13), (132, 0.5, 66), (50, 0.001, 1), (5, 5, 0)],
)
def test_what_is_held_out(rows: int, size: float, count: int) -> None:
    assert held_out_count(rows, size) == count


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("a.jsonl", Source("a.jsonl", 1)),
        ("a.jsonl:0.5", Source("a.jsonl", 0.5)),
        ("./a:b/c.json:3", Source("./a:b/c.json", 3)),
        ("org/set:.25", Source("org/set", 0.25)),
        ("a.jsonl:1e-3", Source("a.jsonl", 0.001)),
        ("a.jsonl:", Source("a.jsonl:")),
        ("a.jsonl:x", Source("a.jsonl:x")),
    ],
)
def test_a_source_may_have_a_weight(value: str, source: Source) -> None:
    assert parse_source(value) == source


@pytest.mark.parametrize("value", ["a:0", "a:-1", "a:0.0", "a:1.2.3", "a:."])
def test_a_weight_is_a_number_above_0(value: str) -> None:
    with pytest.raises(ValueError, match="not a number above 0"):
        parse_source(value)


def test_a_file_whose_name_ends_like_a_weight(tmp_path) -> None:
    path = tmp_path / "a:2"
    path.write_text("")
    assert parse_source(str(path)) == Source(str(path))


def test_a_weight_says_how_often_rows_are_seen() -> None:
    half, twice, and_a_half = repetitions([10, 10, 10], [0.5, 2, 2.5], seed=1)
    assert sorted(half) == [0] * 5 + [1] * 5
    assert twice.tolist() == [2] * 10
    assert sorted(and_a_half) == [2] * 5 + [3] * 5
    again, other = (repetitions([10], [0.5], seed)[0].tolist() for seed in (1, 2))
    assert again == half.tolist() != other


def test_the_split_is_a_seeded_choice_that_loses_nothing() -> None:
    prompts = [hashes(*range(60)), hashes(*range(60, 100))]
    one = split(prompts, [1, 1], 30, seed=1)
    assert (len(one.held_out), one.wanted_count, one.moved_count) == (30, 30, 0)
    assert one.rows_per_epoch == [sum(row < 60 for row in one.train), sum(row >= 60 for row in one.train)]
    assert sorted(one.train + one.held_out) == list(range(100))
    assert one.train == sorted(one.train)
    assert split(prompts, [1, 1], 30, seed=1) == one
    assert split(prompts, [1, 1], 30, seed=2).held_out != one.held_out
    assert split(prompts, [1, 1], 0, seed=1).held_out == []


@pytest.mark.parametrize("seed", range(20))
def test_rows_with_one_prompt_are_on_one_side(seed: int) -> None:
    prompts = np.random.default_rng(seed).integers(0, 150, 200).astype(np.uint64)
    chosen = split([prompts[:50], prompts[50:]], [1, 1], 40, seed)
    assert sorted(chosen.train + chosen.held_out) == list(range(200))
    assert not set(prompts[chosen.train]) & set(prompts[chosen.held_out])
    assert len(chosen.held_out) == chosen.wanted_count == 40
    # Against the choice that would be made if all prompts differed.
    free = split([hashes(*range(200))], [1], 40, seed)
    assert chosen.moved_count == len(set(free.held_out) ^ set(chosen.held_out)) > 0


def test_where_the_rows_with_one_prompt_are_too_many_fewer_are_held_out() -> None:
    chosen = split([hashes(7, 7, 7, 7, 8, 8, 8)], [1], 2, seed=0)
    assert (chosen.held_out, chosen.wanted_count, len(chosen.train)) == ([], 2, 7)
    assert split([hashes(7, 7, 7, 7, 8)], [1], 2, seed=0).held_out == [4]


def test_a_row_that_is_seen_twice_is_held_out_once() -> None:
    chosen = split([hashes(*range(10)), hashes(*range(10, 20))], [2, 0.5], 5, seed=3)
    held_out_of_first = sum(row < 10 for row in chosen.held_out)
    assert chosen.rows_per_epoch == [20 - 2 * held_out_of_first, 5 - (5 - held_out_of_first)]
    assert len(set(chosen.train)) + len(chosen.held_out) + chosen.left_out_count == 20
    assert len(set(chosen.held_out)) == len(chosen.held_out) == 5
    assert not set(chosen.train) & set(chosen.held_out)
    assert len(set(chosen.train)) == 10
    assert all(chosen.train.count(row) == (2 if row < 10 else 1) for row in chosen.train)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_trained_on_or_held_out_or_left_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 30, 3)
    rows = [random.integers(TRAINED, 12, size) for size in sizes]
    weights = random.choice([0.3, 1, 2.5], 3)
    chosen = split(rows, weights.tolist(), int(random.integers(0, 20)), seed)
    taken = np.flatnonzero(np.concatenate(repetitions(sizes.tolist(), weights.tolist(), seed)))
    assert set(chosen.train) | set(chosen.held_out) == set(taken.tolist())
    assert len(set(chosen.train)) + len(chosen.held_out) + chosen.left_out_count == sum(sizes)
    assert chosen.bound_count == np.count_nonzero(np.concatenate(rows)[taken] == TRAINED)
    assert sum(chosen.rows_per_epoch) == len(chosen.train)
