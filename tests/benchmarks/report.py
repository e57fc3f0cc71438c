"""The measurements of the technical report, its pictures, and the tables of its two pages.

    python -m tests.benchmarks.report                       measures all sections that fit on two cores
    python -m tests.benchmarks.report --only alibi          one of them
    python -m tests.benchmarks.report --pages               none: pages and pictures from the results again

What is found is kept in docs/report.json, each section with its command, machine and date; a section that is
measured again replaces the earlier one. docs/figures/*.png are drawn of it, and in docs/report.md and
docs/zh/report.md what stands between these two lines is written anew; nothing between them is typed by hand:

    <!-- measured: alibi -->
    <!-- end -->

What was measured elsewhere is added by the name of its section, of ADDED in `report_sections`: what the
benchmark printed, in a file (of several runs: one after the other), or the card.json of a card check.

    for base in bloom qwen llama; do
        python -m tests.benchmarks.train_step --data-path data/yayi_train_example.json \\
            --input-model checkpoints/tiny-bloom --base $base
    done > steps.txt
    python -m tests.benchmarks.report --add train_step_card steps.txt --machine "H100, driver, torch"
    python -m tests.benchmarks.report --add card_check card.json

With --base, a real base model that `tests.benchmarks.smollm2` makes, two sections measure more.
"""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from tests.benchmarks.report_figures import draw_figures, is_drawn
from tests.benchmarks.report_sections import (
    ADDED,
    ROOT,
    SECTIONS,
    Settings,
    card_of,
    command_of,
    this_machine,
    today,
)
from tests.benchmarks.report_tables import CAPTIONS, LANGUAGES, TABLES, Say
from training.common.errors import UserError, run_command
from training.common.files import write_atomic

RESULTS = ROOT / "docs" / "report.json"
PAGES = {"en": ROOT / "docs" / "report.md", "zh": ROOT / "docs" / "zh" / "report.md"}
FIGURES = ROOT / "docs" / "figures"

BETWEEN_MARKS = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Results = dict[str, dict[str, Any]]


def read_results() -> Results:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def block(name: str, results: Results, say: Say) -> str:
    """What a page has of a section: its table, command, machine and date, or that it is not measured.

    A picture follows where one of the sections that it shows was measured.
    """
    shown = table_and_source(name, results, say)
    if not is_drawn(name, results):
        return shown
    return f"{shown}\n\n![{say(*CAPTIONS[name])}]({say('', '../')}figures/{name}.png)"


def table_and_source(name: str, results: Results, say: Say) -> str:
    if name not in results:
        command = f"`{command_of(name)}`"
        return say(f"*Not measured yet*: {command}", f"*尚未测量*：{command}")
    section = results[name]
    command = f"`{section['command']}`"
    lines = TABLES[name](section["found"], say)
    source = say(
        f"{command}; {section['machine']}; {section['date']}",
        f"{command}；{section['machine']}；{section['date']}",
    )
    return "\n".join([*lines, "", f"*{source}*"])


def filled(page: str, results: Results, say: Say) -> str:
    """A page whose marked places show the results. Raises UserError for a place of an unknown section."""

    def fill(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise UserError(f"<!-- measured: {found[2]} -->: no section of that name")
        return f"{found[1]}\n{block(found[2], results, say)}\n\n{found[3]}"

    return BETWEEN_MARKS.sub(fill, page)


def write_pages(results: Results) -> None:
    for language, path in PAGES.items():
        write_atomic(path, filled(path.read_text("utf-8"), results, LANGUAGES[language]))
    draw_figures({name: section["found"] for name, section in results.items()}, FIGURES)


def keep(name: str, found: Any, machine: str, command: str) -> None:
    """Write a section to the results file, at once: a later section may fail."""
    section = {"command": command, "machine": machine, "date": today(), "found": found}
    results = read_results() | {name: section}
    in_order = {each: results[each] for each in TABLES if each in results}
    write_atomic(RESULTS, json.dumps(in_order, ensure_ascii=False, indent=1) + "\n")


def add(name: str, path: Path, machine: str | None) -> None:
    """Keep what was measured elsewhere. Raises UserError where the file or the machine's name is missing."""
    try:
        found = ADDED[name].read(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    machine = machine or (card_of(found) if name == "card_check" else None)
    if not machine:
        raise UserError(f"--add {name}: name the machine, by --machine 'card, driver, torch'")
    quick = " --quick" if name == "card_check" and "--quick" in found["sizes"] else ""
    keep(name, found, machine, command_of(name) + quick)


@click.command()
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="Sections to measure.")
@click.option("--pages", "only_pages", is_flag=True, help="Measure nothing; write pages and pictures.")
@click.option(
    "--add", "added", nargs=2, type=(click.Choice(list(ADDED)), click.Path(path_type=Path)), multiple=True,
    help="Keep what was measured elsewhere: the name of its section, and a file.",
)  # fmt: skip
@click.option("--machine", help="The machine of what is added.")
@click.option("--base", help="The directory of a real base model.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where to keep models and answers, to go on from."
)
@click.option("--corpus", "corpora", multiple=True, help="Rows of a domain for the vocabulary section.")
@click.option("--tokenizer", "tokenizers", multiple=True, help="A tokenizer's directory for that section.")
def main(
    only: tuple[str, ...],
    only_pages: bool,
    added: tuple[tuple[str, Path], ...],
    machine: str | None,
    base: str | None,
    work: Path | None,
    corpora: tuple[str, ...],
    tokenizers: tuple[str, ...],
) -> None:
    """Measure the sections of the technical report, and write its tables and pictures."""
    for name, path in added:
        add(name, path, machine)
    if not added and not only_pages:
        with tempfile.TemporaryDirectory() as directory:
            settings = Settings(work or Path(directory), base, corpora, tokenizers)
            for name in only or SECTIONS:
                start = time.monotonic()
                found = SECTIONS[name].measure(settings)
                keep(name, found, this_machine(), command_of(name, settings))
                click.echo(f"{name}: measured in {time.monotonic() - start:.0f} s")
    write_pages(read_results())


if __name__ == "__main__":
    run_command(main)
