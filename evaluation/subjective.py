"""Subjective questions: models answer them, people rate the answers from 1 to 5, the ratings rank the models.

python -m evaluation.subjective ask --model checkpoints/demo \\
    --questions data/evaluation/subjective_example.jsonl --output checkpoints/demo-answers.jsonl
python -m evaluation.subjective ask --endpoint http://localhost:8000/v1 --model other \\
    --questions data/evaluation/subjective_example.jsonl --output checkpoints/other-answers.jsonl
python -m evaluation.subjective sheets --answers checkpoints/demo-answers.jsonl \\
    --answers checkpoints/other-answers.jsonl --raters 3 --output checkpoints/evaluation/sheets
python -m evaluation.subjective score --sheets checkpoints/evaluation/sheets

A question is {"domain": "基础能力-主观题", "category": "翻译题", "question": "..."}; a domain need not have
categories. A model's mean in a domain is the mean of its categories' means, as in the original's tables.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from evaluation.endpoint import ask_endpoint
from evaluation.ranking import agreement, ratings_report, score_tables
from evaluation.ratings import KEY, read_sheets, write_sheets
from evaluation.subjective_questions import SubjectiveQuestion, read_answers, read_subjective_questions
from inference.batch_answers import batch_answerer, check_prompt_lengths
from inference.generation import context_length
from inference.options import load_from_options, model_options, sampling_options
from inference.resumable import (
    Journal,
    claim_output,
    record_of,
    refusals,
    work_through,
    write_result,
    write_rows,
)
from training.common.command_line import PathOrName, UserPath
from training.common.console import say
from training.common.errors import run_command
from training.common.files import check_empty
from training.data.reader import fingerprint
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

# Options that may change before asking is continued.
FREE_OPTIONS = ("questions", "output", "device", "batch_size")


@click.group()
def main() -> None:
    """Let models answer questions, let people rate the answers, and rank the models."""


@main.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--endpoint", help="URL of an OpenAI-compatible server that has --model, such as http://host:8000/v1."
)
@click.option("--questions", type=PathOrName(), required=True, help="File of questions.")
@click.option(
    "--output", required=True, type=UserPath(dir_okay=False, path_type=Path), help="JSON Lines to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Questions at a time.")
@sampling_options
def ask(**options: Any) -> None:
    """Let one model answer --questions. Ctrl-C stops it, and the same command continues."""
    collect(SimpleNamespace(**options))


@main.command(context_settings={"show_default": True})
@click.option(
    "--answers",
    type=PathOrName(),
    required=True,
    multiple=True,
    help="File that `ask` wrote; give one for each model.",
)
@click.option("--raters", type=click.IntRange(min=1), default=3, help="How many people rate.")
@click.option(
    "--output", required=True, type=UserPath(file_okay=False, path_type=Path), help="Directory to make."
)
@click.option("--seed", type=int, default=515, help="Seed for the order of the answers and their numbers.")
def sheets(answers: Sequence[str], raters: int, output: Path, seed: int) -> None:
    """Make a blind sheet for each rater, to be opened in a spreadsheet."""
    items = read_answers(answers)
    check_empty(output, "move it, or give another --output")
    with refusals(output):
        output.mkdir(parents=True, exist_ok=True)
    paths = write_sheets(items, raters, seed, output)
    say(
        f"{', '.join(map(str, paths))}: {len(items):,} answers each, to be rated in the last column",
        on_stderr=True,
    )
    say(f"{output / KEY}: which answer is whose; not for the raters", on_stderr=True)


@main.command()
@click.option("--sheets", required=True, type=UserPath(path_type=Path), help="Directory that `sheets` made.")
def score(sheets: Path) -> None:
    """Read the sheets back, rank the models, and write result.json beside them."""
    ratings = read_sheets(sheets)
    result = {
        "kind": "subjective",
        "raters": len(ratings.scores),
        "alpha": agreement(np.asarray(ratings.scores)),
        "tables": score_tables(ratings),
    }
    write_result(sheets / "result.json", result)
    print(ratings_report(result), end="")


def collect(options: SimpleNamespace) -> None:
    """Write --output: each question with the model's name and answer."""
    with claim_output(options.output):
        questions = read_subjective_questions(options.questions)
        journal = Journal(
            options.output, record_of(options, {"--questions": fingerprint(options.questions)}, FREE_OPTIONS)
        )
        rest = [row for row in range(len(questions)) if row not in journal.answers]
        if rest and options.endpoint:
            work_through(
                rest, journal, len(questions), options.batch_size, endpoint_answerer(questions, options)
            )
        elif rest:
            answer = model_answerer(questions, journal, options)
            work_through(rest, journal, len(questions), options.batch_size, answer)
        entries = [journal.answers[row] for row in range(len(questions))]
        rows = (
            question._asdict() | {"model": options.model, "answer": entry["answer"], "ended": entry["ended"]}
            for question, entry in zip(questions, entries, strict=True)
        )
        write_rows(options.output, rows)
        journal.path.unlink()
    cut_off = sum(not entry["ended"] for entry in entries)
    say(f"{options.output}: {len(entries):,} answers, {cut_off:,} of them cut off", on_stderr=True)


Answering = Callable[[list[int]], list[dict[str, Any]]]


def model_answerer(
    questions: Sequence[SubjectiveQuestion], journal: Journal, options: SimpleNamespace
) -> Answering:
    """A function from the indices of questions to the answers of --model, loaded here."""
    model, tokenizer = load_from_options(options, allow_untaught=True)
    prompts = [encode_prompt(Conversation((Turn(one.question),)), tokenizer) for one in questions]
    check_prompt_lengths([repr(one.question) for one in questions], prompts, context_length(model))
    return batch_answerer(model, tokenizer, prompts, journal, options)


def endpoint_answerer(questions: Sequence[SubjectiveQuestion], options: SimpleNamespace) -> Answering:
    """A function from the indices of questions to the answers of a model behind an endpoint.

    The repetition penalty does not apply: the protocol has none.
    """
    sampling = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_new_tokens,
    }
    if options.seed is not None:
        sampling["seed"] = options.seed

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        texts = [questions[row].question for row in rows]
        answers = ask_endpoint(options.endpoint, options.model, texts, sampling)
        return [{"row": row} | one for row, one in zip(rows, answers, strict=True)]

    return answer


if __name__ == "__main__":
    run_command(main)
