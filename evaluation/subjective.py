"""Subjective questions: models answer them, people rate the answers from 1 to 5, the ratings rank the models.

python -m evaluation.subjective ask --model checkpoints/demo \\
    --questions data/evaluation/subjective_example.jsonl --output checkpoints/demo-answers.jsonl
python -m evaluation.subjective ask --endpoint http://localhost:8000/v1 --model other \\
    --questions data/evaluation/subjective_example.jsonl --output checkpoints/other-answers.jsonl
python -m evaluation.subjective sheets --answers checkpoints/demo-answers.jsonl \\
    --answers checkpoints/other-answers.jsonl --raters 3 --output checkpoints/evaluation/sheets
python -m evaluation.subjective score --sheets checkpoints/evaluation/sheets

A question is {"domain": "基础能力-主观题", "category": "翻译题", "question": "..."}, the category where the
domain has such. A model's mean in a domain is that of its categories' means, as in the original's tables.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from evaluation import endpoint, ranking
from evaluation.answers import Question, read_answers, read_questions
from evaluation.ratings import KEY, read_sheets, write_sheets
from evaluation.tables import score_table
from inference.batch import answering, check_room
from inference.generation import context_length
from inference.options import load_chosen, model_options, sampling_options
from inference.resumable import Journal, held, record_of, refusals, say, work_through, write_rows, write_text
from training.common.errors import UserError, run_command
from training.data.reader import fingerprint
from training.text.conversation import Conversation, Turn
from training.text.encoding import encode_prompt

# Options that may change before asking is continued.
FREE_OPTIONS = ("questions", "output", "device", "batch_size")


@click.group()
def main() -> None:
    """Let models answer, people rate, and count."""


@main.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--endpoint", help="URL of an OpenAI-compatible server that has --model, as http://host:8000/v1."
)
@click.option("--questions", required=True, help="File of questions.")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="JSON Lines to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Questions at a time.")
@sampling_options
def ask(**options: Any) -> None:
    """Let one model answer --questions. Ctrl-C stops it, and the same command continues."""
    collect(SimpleNamespace(**options))


@main.command(context_settings={"show_default": True})
@click.option("--answers", required=True, multiple=True, help="What `ask` wrote; once for each model.")
@click.option("--raters", type=click.IntRange(min=1), default=3, help="How many people rate.")
@click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to make."
)
@click.option("--seed", type=int, default=515, help="Of the order and the numbers of the answers.")
def sheets(answers: Sequence[str], raters: int, output: Path, seed: int) -> None:
    """Make a blind sheet for each rater, to be opened in a spreadsheet."""
    items = read_answers(answers)
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: holds something already; move it, or give another --output")
    with refusals(output):
        output.mkdir(parents=True, exist_ok=True)
    paths = write_sheets(items, raters, seed, output)
    say(f"{', '.join(map(str, paths))}: {len(items):,} answers each, to be rated in the last column")
    say(f"{output / KEY}: which answer is whose; not for the raters")


@main.command()
@click.option(
    "--sheets", required=True, type=click.Path(path_type=Path), help="Directory that `sheets` made."
)
def score(sheets: Path) -> None:
    """Read the sheets back, rank the models, and write result.json beside them."""
    ratings = read_sheets(sheets)
    result = {
        "kind": "subjective",
        "raters": len(ratings.scores),
        "alpha": ranking.agreement(np.asarray(ratings.scores)),
        "tables": ranking.tables(ratings),
    }
    write_text(sheets / "result.json", [json.dumps(result, ensure_ascii=False, indent=1) + "\n"])
    print(report(result), end="")


def collect(options: SimpleNamespace) -> None:
    """Write --output: each question with the model's name and answer."""
    with held(options.output):
        questions = read_questions(options.questions)
        journal = Journal(
            options.output, record_of(options, {"--questions": fingerprint(options.questions)}, FREE_OPTIONS)
        )
        rest = [row for row in range(len(questions)) if row not in journal.answers]
        if rest and options.endpoint:
            work_through(rest, journal, len(questions), options.batch_size, by_endpoint(questions, options))
        elif rest:
            answer = by_model(questions, journal, options)
            work_through(rest, journal, len(questions), options.batch_size, answer)
        given = [journal.answers[row] for row in range(len(questions))]
        rows = (
            question._asdict() | {"model": options.model, "answer": one["answer"], "ended": one["ended"]}
            for question, one in zip(questions, given, strict=True)
        )
        write_rows(options.output, rows)
        journal.path.unlink()
    cut_off = sum(not one["ended"] for one in given)
    say(f"{options.output}: {len(given):,} answers, {cut_off:,} of them cut off")


Answering = Callable[[list[int]], list[dict[str, Any]]]


def by_model(questions: Sequence[Question], journal: Journal, options: SimpleNamespace) -> Answering:
    """A function from numbers of questions to answers of the model that is loaded here."""
    model, tokenizer = load_chosen(options, untaught=True)
    prompts = [encode_prompt(Conversation((Turn(one.question),)), tokenizer) for one in questions]
    check_room([repr(one.question) for one in questions], prompts, context_length(model))
    return answering(model, tokenizer, prompts, journal, options)


def by_endpoint(questions: Sequence[Question], options: SimpleNamespace) -> Answering:
    """The same of a model behind an endpoint, which has no repetition penalty."""
    sampling = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_new_tokens,
    }
    if options.seed is not None:
        sampling["seed"] = options.seed

    def answer(rows: list[int]) -> list[dict[str, Any]]:
        texts = [questions[row].question for row in rows]
        answers = endpoint.ask(options.endpoint, options.model, texts, sampling)
        return [{"row": row} | one for row, one in zip(rows, answers, strict=True)]

    return answer


def report(result: dict[str, Any]) -> str:
    """The tables as Markdown."""
    text = f"{result['raters']} raters; Krippendorff's alpha (ordinal) {shown_alpha(result['alpha'])}\n"
    for table in result["tables"]:
        text += f"\n### {table['title']}\n\n{score_table(table)}"
        text += f"\n{table['questions']} questions, alpha {shown_alpha(table['alpha'])}\n"
    return text


def shown_alpha(alpha: float | None) -> str:
    return "–" if alpha is None else f"{alpha:.3f}"


if __name__ == "__main__":
    run_command(main)
