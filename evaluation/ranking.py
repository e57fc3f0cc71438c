"""Ratings -> means by domain and category, ranks, and which ranks the data do not separate."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import krippendorff
import numpy as np

from evaluation import intervals
from evaluation.ratings import HIGHEST, LOWEST, Ratings

# What the original calls the mean of ratings.
MEAN = "准确性平均分"


def agreement(scores: np.ndarray) -> float | None:
    """Krippendorff's alpha for ordinal data; scores: (raters, items). None for one rater, or one score only.

    1 is full agreement, 0 what chance would give (https://doi.org/10.4135/9781071878781).
    """
    if len(scores) < 2 or len(np.unique(scores)) < 2:
        return None
    domain = np.arange(LOWEST, HIGHEST + 1)
    alpha = krippendorff.alpha(scores.astype(float), value_domain=domain, level_of_measurement="ordinal")
    return float(alpha)


def tables(ratings: Ratings) -> list[dict[str, Any]]:
    """One for each domain, with its alpha, number of questions, categories, and a row for each model."""
    scores = np.asarray(ratings.scores)
    return [
        _table(domain, ratings, scores) for domain in dict.fromkeys(item.domain for item in ratings.items)
    ]


def _table(domain: str, ratings: Ratings, scores: np.ndarray) -> dict[str, Any]:
    columns = [index for index, item in enumerate(ratings.items) if item.domain == domain]
    items = [ratings.items[index] for index in columns]
    questions = list(dict.fromkeys((item.category, item.question) for item in items))
    means: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for item, mean in zip(items, scores[:, columns].mean(axis=0), strict=True):
        means[item.model][item.category, item.question] = float(mean)
    # By question, in one order for all models; each category weighs as much as any other.
    values = {model: [of_model[question] for question in questions] for model, of_model in means.items()}
    in_category = [category for category, _ in questions]
    weights = [1 / in_category.count(category) for category in in_category]
    categories = [category for category in dict.fromkeys(in_category) if category]
    ranks = ranked(values, weights)
    rows = []
    for model in sorted(ranks, key=lambda model: ranks[model]["rank"]):
        of_category = defaultdict(list)
        for category, value in zip(in_category, values[model], strict=True):
            of_category[category].append(value)
        shown = [float(np.mean(of_category[category])) for category in categories]
        rows.append({"model": model, **ranks[model], "scores": shown})
    return {
        "title": domain,
        "kind": "subjective",
        "score": MEAN,
        "questions": len(questions),
        "alpha": agreement(scores[:, columns]),
        "categories": categories,
        "rows": rows,
    }


def ranked(values: Mapping[str, Sequence[float]], weights: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Of each model its weighted mean with interval, its rank by it, and the ranks that the data leave open.

    Two models are separated if the interval of the difference of their means, over the same questions, leaves
    out 0. A model may be as high as right below those that are separated from it above, and as low as right
    above those below.
    """
    mean = {model: round(float(np.average(scores, weights=weights)), 9) for model, scores in values.items()}
    result = {}
    for model, scores in values.items():
        above = below = 0
        for other in values.keys() - {model}:
            low, high = intervals.of_mean(np.subtract(values[other], scores), weights)
            above += low > 0
            below += high < 0
        result[model] = {
            "rank": 1 + sum(mean[other] > mean[model] for other in mean),
            "ranks": [1 + above, len(values) - below],
            "mean": mean[model],
            "interval": intervals.of_mean(scores, weights),
        }
    return result
