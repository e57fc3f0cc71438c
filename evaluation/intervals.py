"""95 % intervals: what else a figure could have been with other questions of the same kind."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

CONFIDENCE = 0.95

# How many samples the bootstrap draws, and their seed.
DRAWS, SEED = 10_000, 0


class Interval(NamedTuple):
    low: float
    high: float


def share_interval(count: int, total: int) -> Interval:
    """Wilson's interval of count/total, which holds at 0 and 1 too (https://doi.org/10.2307/2276774)."""
    found = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def mean_interval(values: Sequence[float], weights: Sequence[float]) -> Interval:
    """The percentile bootstrap's interval of a weighted mean; each value is drawn with its weight.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    draws = np.random.default_rng(SEED).integers(len(values), size=(DRAWS, len(values)))
    weight = np.asarray(weights, float)[draws]
    means = (np.asarray(values, float)[draws] * weight).sum(axis=1) / weight.sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))
