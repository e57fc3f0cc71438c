"""Write evaluation.md and evaluation.png of all results in a directory, beside what the original authors
published.

python -m evaluation.report checkpoints/evaluation
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from evaluation.objective_scores import objective_report, objective_table
from evaluation.output import check_no_model
from evaluation.perplexity_scores import perplexity_report
from evaluation.picture import draw
from evaluation.published import inconsistencies, read_published
from evaluation.ranking import ratings_report
from evaluation.tables import MODEL, RANK, markdown, mean, rank, scores
from evaluation.tool_scores import tool_report, tool_table
from inference.resumable import write_output
from training.common.command_line import UserPath
from training.common.console import say
from training.common.errors import UserError, first_line, run_command

SOURCE, PUBLISHED = "来源", "原作者发布"

# A run's directory has a report.md of its own, which is not this one.
RESULT_FILE, REPORT, PICTURE = "result.json", "evaluation.md", "evaluation.png"

# The function that reports each kind of result, and the headline over it.
KINDS = {
    "objective": (objective_report, "Objective questions"),
    "subjective": (ratings_report, "Ratings"),
    "tools": (tool_report, "Calls of tools"),
    "perplexity": (lambda result: perplexity_report([result]), "Held-out loss"),
}


@click.command()
@click.argument("directory", type=UserPath(path_type=Path))
def main(directory: Path) -> None:
    """Write evaluation.md and evaluation.png into DIRECTORY, of every result.json below it."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the one that holds the evaluations' --output")
    check_no_model(directory)
    results = read_results(directory)
    tables = beside_published(results)
    write_output(directory / REPORT, document(results, tables))
    draw(tables, directory / PICTURE)
    say(
        f"{directory / REPORT}, {directory / PICTURE}: {len(results)} results beside the published ones",
        on_stderr=True,
    )


def read_results(directory: Path) -> dict[str, dict[str, Any]]:
    """Each result by the name of its directory, relative to `directory`.

    Raises UserError where there is no result.json, and for one that is none.
    """
    results = {}
    for path in sorted(directory.rglob(RESULT_FILE)):
        try:
            result = json.loads(path.read_text("utf-8"))
            if result["kind"] not in KINDS:
                raise ValueError(f"of the kind {result['kind']!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no result of an evaluation ({first_line(error)}); take it away"
            ) from None
        results[str(path.parent.relative_to(directory))] = result
    if not results:
        raise UserError(
            f"{directory}: no {RESULT_FILE} in it or below it; give the directory that holds the "
            "evaluations' --output"
        )
    return results


def beside_published(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The published tables, each with the rows that were measured here, and then any other tables.

    A row that was measured has "source", and the score None for a category that was not asked.
    """
    tables = {table["title"]: table for table in read_published()}
    for name, result in results.items():
        for measured in _tables_of(result):
            title = measured["title"]
            if title in tables and not set(measured["categories"]) <= set(tables[title]["categories"]):
                title = f"{title} ({name})"
            table = tables.setdefault(title, measured | {"title": title, "rows": []})
            for row in measured["rows"]:
                by_category = dict(zip(measured["categories"], row["scores"], strict=True))
                placed = [by_category.get(category) for category in table["categories"]]
                table["rows"].append(row | {"scores": placed, "source": name})
    return list(tables.values())


def _tables_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A result's scores in the shape of the published tables; a held-out loss has none."""
    if result["kind"] == "objective":
        return [objective_table(result)]
    if result["kind"] == "tools":
        return [tool_table(result)]
    return result["tables"] if result["kind"] == "subjective" else []


def document(results: dict[str, dict[str, Any]], tables: Sequence[dict[str, Any]]) -> str:
    """The text of evaluation.md."""
    return "\n".join(_sections(results, tables))


def _sections(results: dict[str, dict[str, Any]], tables: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"# Evaluation\n\n![bars and radars of the tables below]({PICTURE})\n"
    for name, result in results.items():
        report, title = KINDS[result["kind"]]
        about = "".join(f", {result[key]}" for key in ("model", "questions", "data") if key in result)
        yield f"## {title}: {name}{about}\n\n{report(result)}"
    yield (
        f"## Beside the published results\n\nRows with the source {PUBLISHED} were published by the original "
        "authors, with their questions and raters. Rows with another source were measured here: with other "
        "questions and raters, so that they have no rank among those; in brackets the 95 % interval.\n"
    )
    published = {table["title"]: table for table in read_published()}
    for table in tables:
        if table["title"] not in published:
            continue
        header = [MODEL, RANK, table["score"], *table["categories"], SOURCE]
        yield f"### {table['title']}\n\n{markdown(header, [_line(row) for row in table['rows']])}"
    yield "### Where the published tables disagree with themselves\n"
    found = [f"- {title}: {what}\n" for title in published for what in inconsistencies(published[title])]
    yield "".join(found) or "Nowhere.\n"


def _line(row: dict[str, Any]) -> list[str]:
    if "source" in row:
        return [row["model"], "–", mean(row), *scores(row), row["source"]]
    return [row["model"], rank(row), mean(row), *scores(row), PUBLISHED]


if __name__ == "__main__":
    run_command(main)
