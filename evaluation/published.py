"""The results that the original authors published, and where they contradict themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "data" / "evaluation" / "published_results.json"

# Scores are printed with two decimals; rounding takes away up to half of the last.
HALF = 0.005 + 1e-9

# The lowest and the highest rating, and accuracy.
RANGES = {"subjective": (1, 5), "objective": (0, 1)}

# Numbers of questions in a category are tried up to this.
MOST_QUESTIONS = 200


def read_published() -> list[dict[str, Any]]:
    """The tables in their order, with title, kind, name of the mean, categories, and a row for each model."""
    return json.loads(RESULTS.read_text("utf-8"))


def inconsistencies(table: dict[str, Any]) -> Iterator[str]:
    """Sentences, one for each statement of a published table that its own numbers contradict."""
    rows, (lowest, highest) = table["rows"], RANGES[table["kind"]]
    for row in rows:
        better = sum(other["mean"] > row["mean"] for other in rows)
        if row["rank"] != better + 1:
            yield f"{row['model']} has rank {row['rank']}, and {better} models have a higher mean"
        for score in (row["mean"], *row["scores"]):
            if not lowest <= score <= highest:
                yield f"{row['model']} has the score {score:.2f}, outside of {lowest} to {highest}"
    if not table["categories"]:
        return
    sizes = sizes_of(table)
    for row in rows:
        if sizes is None:
            how, expected = "the plain mean of its categories", sum(row["scores"]) / len(row["scores"])
        else:
            right = [round(size * score) for size, score in zip(sizes, row["scores"], strict=True)]
            how, expected = f"that of {sizes} questions", sum(right) / sum(sizes)
        if abs(expected - row["mean"]) > HALF:
            yield f"{row['model']} has the mean {row['mean']:.2f}; {how}, as printed, is {expected:.4f}"


def sizes_of(table: dict[str, Any]) -> list[int] | None:
    """The number of questions in each category of an objective table; None for ratings, whose categories
    count alike.

    The numbers were not published. Each is taken to be the smallest for which every accuracy of the category
    is a whole number of right answers.
    """
    if table["kind"] == "subjective":
        return None
    columns = zip(*(row["scores"] for row in table["rows"]), strict=True)
    return [questions_of(accuracies) for accuracies in columns]


def questions_of(accuracies: tuple[float, ...]) -> int:
    """The smallest number of questions that gives all these accuracies, to two decimals."""
    for number in range(1, MOST_QUESTIONS):
        if all(abs(round(accuracy * number) / number - accuracy) <= HALF for accuracy in accuracies):
            return number
    raise ValueError(f"no number of questions below {MOST_QUESTIONS} gives {accuracies}")
