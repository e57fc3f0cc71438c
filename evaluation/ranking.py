"""Ratings -> means by domain and category, ranks, the ranks that the data leave open, and their report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import krippendorff
import numpy as np

from evaluation.intervals import mean_interval
from evaluation.ratings import HIGHEST, LOWEST, Ratings
from evaluation.tables import score_table

# The original's name for the mean of ratings.
MEAN = "准确性平均分"


def agreement(scores: np.ndarray) -> float | None:
    """Krippendorff's alpha for ordinal data; None for one rater, or where all scores are equal.

    scores: (raters, items). 1 is full agreement, 0 what chance would give (https://doi.org/10.4135/9781071878781).
    """
    if len(scores) < 2 or len(np.unique(scores)) < 2:
        return None
    domain = np.arange(LOWEST, HIGHEST + 1)
    alpha = krippendorff.alpha(scores.astype(float), value_domain=domain, level_of_measurement="ordinal")
    return float(alpha)


def score_tables(ratings: Ratings) -> list[dict[str, Any]]:
    """A table for each domain, with its alpha, number of questions, categories, and a row for each model."""
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
    # Each model's mean ratings, all in the same order of questions. Every category has the same weight.
    values = {model: [of_model[question] for question in questions] for model, of_model in means.items()}
    in_category = [category for category, _ in questions]
    weights = [1 / in_category.count(category) for category in in_category]
    categories = [category for category in dict.fromkeys(in_category) if category]
    ranks = rank_models(values, weights)
    rows = []
    for model in sorted(ranks, key=lambda model: ranks[model]["rank"]):
        of_category = defaultdict(list)
        for category, value in zip(in_category, values[model], strict=True):
            of_category[category].append(value)
        category_means = [float(np.mean(of_category[category])) for category in categories]
        rows.append({"model": model, **ranks[model], "scores": category_means})
    return {
        "title": domain,
        "kind": "subjective",
        "score": MEAN,
        "questions": len(questions),
        "alpha": agreement(scores[:, columns]),
        "categories": categories,
        "rows": rows,
    }


def rank_models(values: Mapping[str, Sequence[float]], weights: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Each model's weighted mean with its interval, its rank, and the ranks that the data leave open.

    Two models are separated if the interval of the difference of their means, over the same questions, does
    not contain 0. The best rank that a model may have is the one after all models that are separated from it
    above; the worst is the one before all that are separated from it below.
    """
    mean = {model: round(float(np.average(scores, weights=weights)), 9) for model, scores in values.items()}
    result = {}
    for model, scores in values.items():
        above = below = 0
        for other in values.keys() - {model}:
            low, high = mean_interval(np.subtract(values[other], scores), weights)
            above += low > 0
            below += high < 0
        result[model] = {
            "rank": 1 + sum(mean[other] > mean[model] for other in mean),
            "ranks": [1 + above, len(values) - below],
            "mean": mean[model],
            "interval": mean_interval(scores, weights),
        }
    return result


def ratings_report(result: dict[str, Any]) -> str:
    """The result of an evaluation by ratings, as Markdown."""
    text = f"{result['raters']} raters; Krippendorff's alpha (ordinal) {alpha_text(result['alpha'])}\n"
    for table in result["tables"]:
        text += f"\n### {table['title']}\n\n{score_table(table)}"
        text += f"\n{table['questions']} questions, alpha {alpha_text(table['alpha'])}\n"
    return text


def alpha_text(alpha: float | None) -> str:
    """An alpha with three decimals, or a dash where there is none."""
    return "–" if alpha is None else f"{alpha:.3f}"
