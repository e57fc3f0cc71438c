"""Objective questions: how many a model answers right, by category.

python -m evaluation.objective --model checkpoints/demo \\
    --questions data/evaluation/objective_example.jsonl --output checkpoints/evaluation/demo-objective

A multiple-choice question is asked in every rotation of its options, so that each of them stands once at each
letter, and its answer is determined in five ways:

    generated             the model answers, greedily, and the option is read off what it says; an answer that
                          cannot be read is wrong
    generated or guessed  the same answer, but a random guess where it cannot be read
    letter                the letter that is the likeliest answer
    option                the "A. text" that is likeliest as a whole, which favours short ones
    option per token      the "A. text" whose log-likelihood divided by its number of tokens is highest

Where several options are right, all of them and no others are to be chosen; an answer is only generated then.
An answer's likelihood is that of all its supervised tokens, as training would have them. For a short-answer
question, an answer is only generated; it is right if it contains an accepted one. Accuracies are those of the
options' own order; the other orders show whether a model goes by the letter.

--output is a directory: answers.jsonl has every answer, result.json the figures.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from evaluation.likelihood import answer_ids, log_likelihoods
from evaluation.objective_questions import (
    LETTERS,
    ObjectiveQuestion,
    as_conversation,
    read_objective_questions,
)
from evaluation.objective_scores import LETTER, OPTION, judge, objective_figures, objective_report
from evaluation.output import check_no_model
from inference.batch_answers import answer_batch, check_prompt_lengths
from inference.generation import context_length, generation_config
from inference.options import load_from_options, model_options
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
from training.common.errors import UserError, run_command
from training.model.context import context_limit
from training.text.encoding import encode_prompt

# Options that may change before a run is continued.
FREE_OPTIONS = ("questions", "output", "device", "batch_size")


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--questions",
    type=PathOrName(),
    required=True,
    help="A file of questions, or a set on the hub: ceval/ceval-exam.",
)
@click.option(
    "--output", required=True, type=UserPath(file_okay=False, path_type=Path), help="Directory to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Questions at a time.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, help="Longest answer that is generated."
)
def main(**options: Any) -> None:
    """Let a model answer questions, and count right ones. Ctrl-C stops it, and the same command continues."""
    measure_accuracy(SimpleNamespace(**options, seed=None))


def measure_accuracy(options: SimpleNamespace) -> None:
    """Write --output. Raises UserError for what is wrong with the questions before the model is loaded."""
    result_file = options.output / "result.json"
    check_no_model(options.output)
    with refusals(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    with claim_output(result_file):
        questions = read_objective_questions(options.questions)
        tasks = [(question, rotation) for question in questions for rotation in range(question.rotations)]
        journal = Journal(result_file, record_of(options, {"--questions": digest(questions)}, FREE_OPTIONS))
        if len(journal.answers) < len(tasks):
            answer_tasks(tasks, journal, options)
        judged = [judge(*task, journal.answers[row]) for row, task in enumerate(tasks)]
        write_rows(options.output / "answers.jsonl", judged)
        result = {"kind": "objective", "model": options.model, "questions": options.questions}
        result |= objective_figures(judged)
        write_result(result_file, result)
        journal.path.unlink()
    print(objective_report(result), end="")
    say(
        f"{options.output}: {len(questions):,} questions in {len(tasks):,} forms, {journal.seconds:,.0f} s",
        on_stderr=True,
    )


def digest(questions: Sequence[ObjectiveQuestion]) -> str:
    """A hash of the questions, by which a continued run recognises them."""
    text = repr(questions).replace("ObjectiveQuestion(", "Question(")  # the name when the first runs began
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def has_one_right(question: ObjectiveQuestion) -> bool:
    """Whether likelihoods choose an answer: of a multiple-choice question with one right option."""
    return bool(question.options) and not question.has_several


def answer_tasks(
    tasks: Sequence[tuple[ObjectiveQuestion, int]], journal: Journal, options: SimpleNamespace
) -> None:
    """Answer what is not in `journal`, the longest first, so that a lack of memory shows at once.

    tasks: pairs of a question and the rotation of its options in which it is asked.
    """
    model, tokenizer = load_from_options(options, allow_untaught=True)
    questions = [question.rotated(rotation) for question, rotation in tasks]
    prompts = [encode_prompt(as_conversation(question), tokenizer) for question in questions]
    check_prompt_lengths([question.place for question in questions], prompts, context_length(model))
    limit = context_limit(model.config)
    config = generation_config(
        tokenizer, max_new_tokens=options.max_new_tokens, temperature=0, repetition_penalty=1.0
    )

    def answer(batch: list[int]) -> list[dict[str, Any]]:
        generated = answer_batch(model, tokenizer, [prompts[row] for row in batch], config)
        entries = [{"row": row} | given._asdict() for row, given in zip(batch, generated, strict=True)]
        choices = [entry for entry in entries if has_one_right(questions[entry["row"]])]
        if not choices:
            return entries
        candidates = []
        for entry in choices:
            question = questions[entry["row"]]
            letters = LETTERS[: len(question.options)]
            candidates.append(answer_ids(as_conversation(question), [*letters, *question.lines], tokenizer))
            tokens = len(prompts[entry["row"]]) + max(map(len, candidates[-1]))
            if limit and tokens > limit:
                raise UserError(
                    f"{question.place}: with its longest option it has {tokens:,} tokens, more than the "
                    f"model's context of {limit:,}; shorten it, or take it out"
                )
        totals = log_likelihoods(model, [prompts[entry["row"]] for entry in choices], candidates)
        for entry, answers, total in zip(choices, candidates, totals, strict=True):
            if not all(map(math.isfinite, total)):
                raise UserError(
                    f"{options.model}: a likelihood is NaN or infinite: the weights are broken, or overflow "
                    f"in --dtype {options.dtype}; try --dtype float32"
                )
            half = len(total) // 2
            entry |= {
                LETTER: total[:half],
                OPTION: total[half:],
                "tokens_of_option": [*map(len, answers[half:])],
            }
        return entries

    rest = [row for row in range(len(tasks)) if row not in journal.answers]
    rest.sort(key=lambda row: len(prompts[row]), reverse=True)
    work_through(rest, journal, len(tasks), options.batch_size, answer)


if __name__ == "__main__":
    run_command(main)
