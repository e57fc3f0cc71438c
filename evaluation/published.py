"""What the original authors published of their evaluation, and whether it agrees with itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "data" / "evaluation" / "published_results.json"

# Scores are printed with two decimals; half of the last is what rounding takes away.
HALF = 0.005 + 1e-9

# Ratings and accuracies, lowest and highest.
RANGES = {"subjective": (1, 5), "objective": (0, 1)}

# A category of more questions than that is not looked for.
MOST_QUESTIONS = 200


def read_published() -> list[dict[str, Any]]:
    """The tables in their order, with title, kind, name of the mean, categories, and a row for each model."""
    return json.loads(RESULTS.read_text("utf-8"))


def inconsistencies(table: dict[str, Any]) -> Iterator[str]:
    """Sentences about what a published table says and its own numbers contradict."""
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

    It was not published. It is taken to be the smallest for which every accuracy of the category is a whole
    number of right answers.
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
