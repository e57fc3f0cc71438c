"""Tables as Markdown, with the original's columns: model, rank, mean, then the categories."""

from collections.abc import Sequence
from typing import Any

MODEL, RANK = "模型", "排名"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown: a line for the header, one below it, and one for each row."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def score_table(table: dict[str, Any]) -> str:
    """A table of scores as Markdown, with two decimals each.

    In a measured table, means have intervals, and ranks the range that the data leave open.
    """
    header = [MODEL, RANK, table["score"], *table["categories"]]
    return markdown(header, [[row["model"], rank(row), mean(row), *scores(row)] for row in table["rows"]])


def rank(row: dict[str, Any]) -> str:
    """ "2", or "2 (1–3)" where the data leave the ranks from 1 to 3 open."""
    low, high = row.get("ranks", [row["rank"]] * 2)
    return f"{row['rank']}" if low == high else f"{row['rank']} ({low}–{high})"


def mean(row: dict[str, Any]) -> str:
    """ "3.21", or "3.21 [3.02, 3.40]" where there is an interval."""
    if "interval" not in row:
        return f"{row['mean']:.2f}"
    low, high = row["interval"]
    return f"{row['mean']:.2f} [{low:.2f}, {high:.2f}]"


def scores(row: dict[str, Any]) -> list[str]:
    """The score of each category with two decimals, or a dash where it was not asked."""
    return ["–" if score is None else f"{score:.2f}" for score in row["scores"]]
