"""How many rated questions separate models: ratings drawn at random for models whose means are known.

`python -m tests.benchmarks.report --only raters` does it with the functions that rank real ratings.
"""

import numpy as np

from evaluation.ranking import agreement, score_tables
from evaluation.ratings import HIGHEST, LOWEST, Item, Ratings

QUESTIONS = (20, 50, 100, 200)
RATERS, TRIALS = 3, 20

# What the models are worth, on the scale of the ratings; the last two differ by a tenth.
MEANS = {"A": 4.0, "B": 3.6, "C": 3.2, "D": 3.1}

# The standard deviations of an answer around its model's mean, and of a rating around its answer.
OF_ANSWER, OF_RATING = 0.8, 0.5


def separated_models(questions: int) -> dict[str, float]:
    """Means over some trials with so many questions.

    "alpha" is the raters' agreement; "apart, far" and "apart, near" the share of trials in which the interval
    of the difference tells models apart that differ by 0.4 (A and B) and by 0.1 (C and D); "out of order" the
    share in which C and D are ranked the wrong way round. "alpha, random" is that of raters who throw dice.
    """
    random = np.random.default_rng(questions)
    found = []
    for _ in range(TRIALS):
        items, worth = [], []
        for model, mean in MEANS.items():
            for number in range(questions):
                items.append(Item("questions", "", str(number), model, "an answer"))
                worth.append(random.normal(mean, OF_ANSWER))
        ratings = random.normal(worth, OF_RATING, (RATERS, len(items)))
        scores = ratings.round().clip(LOWEST, HIGHEST).astype(int)
        dice = random.integers(LOWEST, HIGHEST + 1, scores.shape)
        (table,) = score_tables(Ratings(items, scores.tolist()))
        rank = {row["model"]: row["rank"] for row in table["rows"]}
        ranks = {row["model"]: row["ranks"] for row in table["rows"]}
        found.append({
            "alpha": table["alpha"],
            "alpha, random": agreement(dice),
            "apart, far": float(ranks["A"][1] < ranks["B"][0]),
            "apart, near": float(ranks["C"][1] < ranks["D"][0]),
            "out of order": float(rank["C"] > rank["D"]),
        })  # fmt: skip
    return {"questions": questions} | {
        name: float(np.mean([each[name] for each in found])) for name in found[0]
    }
