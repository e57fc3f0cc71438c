import math

import numpy as np
import pytest
from scipy.stats import norm

from evaluation.intervals import mean_interval, share_interval

# The normal quantile of a 95% interval, 1.96, with more digits.
Z = norm.ppf(0.975)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (75, 300), (1, 3)])
def test_the_interval_of_a_share_is_the_root_of_the_score_equation(count: int, total: int) -> None:
    """At Wilson's ends, the share lies 1.96 of the end's own standard deviations away."""
    low, high = share_interval(count, total)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(count / total - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / total))
    assert (low == 0) == (count == 0)
    assert (high == 1) == (count == total)


def test_the_interval_of_a_mean_is_near_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(1).normal(3.0, 0.8, size=400)
    low, high = mean_interval(values, [1] * 400)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert high - low == pytest.approx(2 * Z * values.std() / 20, rel=0.05)
    assert mean_interval(values, [1] * 400) == (low, high)


def test_weights_make_categories_count_alike() -> None:
    """100 questions of one category and 50 of another, each category weighing one half."""
    values = [1.0] * 100 + [5.0] * 50
    low, high = mean_interval(values, [1 / 100] * 100 + [1 / 50] * 50)
    assert low < 3.0 < high
    assert 0.2 < high - low < 1.0
    assert mean_interval([2.0, 2.0], [1, 1]) == (2.0, 2.0)
