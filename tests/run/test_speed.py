import time
from collections.abc import Iterator

import pytest
import torch

from training.cost.flops import Tokens
from training.data.collate import collate, collate_padded
from training.run import speed
from training.run.speed import Throughput, count_tokens, product_flops_per_second

EXAMPLES = [
    {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    {"input_ids": [7, 8], "labels": [-100, 8]},
]


def test_tokens_are_those_of_the_examples_however_they_are_laid_out() -> None:
    """
    7 8 9      pairs   77 87 88 97 98 99      labels   . 8 9
    7 8 0              77 87 88                        . 8 .
    """
    assert count_tokens(collate(EXAMPLES)) == Tokens(total=5, supervised=3, padding=0, pairs=9)
    assert count_tokens(collate_padded(EXAMPLES)) == Tokens(total=5, supervised=3, padding=1, pairs=9)
    assert Tokens(1, 2, 3, 4) + Tokens(5, 6, 7, 8) == Tokens(6, 8, 10, 12)


def test_matrix_products_are_measured() -> None:
    a = torch.randn(512, 512)
    a @ a
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    here = 20 * 2 * 512**3 / (time.perf_counter() - start)
    measured = product_flops_per_second(torch.float32, torch.device("cpu"), seconds=0.2)
    assert here / 10 < measured < here * 10  # the right order; the machine may be busy


def products_that_take(monkeypatch: pytest.MonkeyPatch, disturbances: Iterator[float]) -> float | None:
    """What is measured where a product reaches 1 GFLOP/s, and takes its time times the next disturbance."""

    def seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
        time.sleep(1e-4)
        return 2 * len(left) ** 3 / 1e9 * next(disturbances)

    monkeypatch.setattr(speed, "_seconds_of_product", seconds_of_product)
    return product_flops_per_second(torch.float32, torch.device("cpu"), seconds=0.01)


def test_what_is_measured_is_the_fastest_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without bfloat16 instructions, layouts differ by a factor of ten."""

    def seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
        time.sleep(1e-4)
        return 2 * len(left) ** 3 / 1e9 * (1 if left.is_contiguous() and not right.is_contiguous() else 10)

    monkeypatch.setattr(speed, "_seconds_of_product", seconds_of_product)
    found = product_flops_per_second(torch.bfloat16, torch.device("cpu"), seconds=0.01)
    assert found == pytest.approx(1e9)


def test_disturbed_products_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of ten take up to 6,000 times as long as they should."""
    disturbances = (1 if i % 10 == 0 else 1000 + i for i in range(5000))
    assert products_that_take(monkeypatch, disturbances) == pytest.approx(1e9)


def test_nothing_is_said_where_no_two_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert products_that_take(monkeypatch, (0.7**i for i in range(2000))) is None


def test_time_that_is_no_training_does_not_count() -> None:
    throughput = Throughput()
    throughput.tokens += Tokens(1, 1, 1, 1)
    with throughput.paused():
        time.sleep(0.3)
    assert throughput.seconds < 0.2
    time.sleep(0.1)
    assert throughput.seconds >= 0.1
    throughput.reset()
    assert (throughput.tokens, throughput.seconds < 0.1) == (Tokens(), True)


def test_measuring_takes_none_of_the_random_numbers_of_the_run() -> None:
    before = torch.get_rng_state()
    product_flops_per_second(torch.float32, torch.device("cpu"), seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)
