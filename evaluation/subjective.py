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

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from evaluation.endpoint import PlainQuestion, ask_endpoint, check_endpoint
from evaluation.output import check_no_model
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
from training.common.command_line import FiniteRange, PathOrName, UserPath
from training.common.console import say
from training.common.errors import run_command
from training.common.files import check_empty
from training.data.reader import fingerprint
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

# Options that may change before asking is continued.
FREE_OPTIONS = ("questions", "output", "device", "batch_size", "timeout")


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
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    default=120.0,
    help="Longest wait of --endpoint for the first byte of an answer, between two, and between tries, in s.",
)
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
    check_no_model(output)
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
    if options.endpoint:
        check_endpoint(options.endpoint)
    check_no_model(options.output.parent)
    with claim_output(options.output):
        questions = read_subjective_questions(options.questions)
        journal = Journal(
            options.output, record_of(options, {"--questions": fingerprint(options.questions)}, FREE_OPTIONS)
        )
        rest = [row for row in range(len(questions)) if row not in journal.answers]
        if rest and options.endpoint:
            plain = {row: PlainQuestion(questions[row].question) for row in rest}
            ask_endpoint(
                options.endpoint,
                request_of(options),
                plain,
                journal,
                total=len(questions),
                at_a_time=options.batch_size,
                timeout_s=options.timeout,
            )
        elif rest:
            answer = model_answerer(questions, journal, options)
            work_through(rest, journal, len(questions), options.batch_size, answer)
        entries = [journal.answers[row] for row in range(len(questions))]
        write_rows(options.output, map(answer_row, questions, entries, itertools.repeat(options.model)))
        journal.path.unlink()
    say(f"{options.output}: {summary(entries)}", on_stderr=True)


def answer_row(question: SubjectiveQuestion, entry: dict[str, Any], model: str) -> dict[str, Any]:
    """A row of --output: the question, the model's name, and what there is of its answer."""
    kept = {
        name: entry[name] for name in ("answer", "ended", "refused", "failed", "tool_call") if name in entry
    }
    return question._asdict() | {"model": model} | kept


def summary(entries: Sequence[dict[str, Any]]) -> str:
    """How many answers there are, of each kind that needs a look, and how many questions have none."""
    answers = [entry for entry in entries if not entry.keys() & {"refused", "failed"}]
    texts = [entry for entry in answers if "tool_call" not in entry]
    counts = {
        "empty": sum(not entry["answer"].strip() for entry in texts),
        "only the call of a tool": len(answers) - len(texts),
    }
    line = f"{len(answers):,} answers, {sum(not entry['ended'] for entry in answers):,} of them cut off"
    line += "".join(f", {count:,} {what}" for what, count in counts.items() if count)
    for what in ("refused", "failed"):
        if count := sum(what in entry for entry in entries):
            line += f"; {count:,} questions {what}"
    return line


Answering = Callable[[list[int]], list[dict[str, Any]]]


def model_answerer(
    questions: Sequence[SubjectiveQuestion], journal: Journal, options: SimpleNamespace
) -> Answering:
    """A function from the indices of questions to the answers of --model, loaded here."""
    model, tokenizer = load_from_options(options, allow_untaught=True)
    prompts = [encode_prompt(Conversation((Turn(one.question),)), tokenizer) for one in questions]
    check_prompt_lengths([repr(one.question) for one in questions], prompts, context_length(model))
    return batch_answerer(model, tokenizer, prompts, journal, options)


def request_of(options: SimpleNamespace) -> dict[str, Any]:
    """What a request to an endpoint has beside the question.

    The repetition penalty does not apply: the protocol has none.
    """
    request = {
        "model": options.model,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_new_tokens,
    }
    if options.seed is not None:
        request["seed"] = options.seed
    return request


if __name__ == "__main__":
    run_command(main)
