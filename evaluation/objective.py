"""Objective questions: how many a model answers right, by category.

python -m evaluation.objective --model checkpoints/demo \\
    --questions data/evaluation/objective_example.jsonl --output checkpoints/evaluation/demo-objective

A multiple-choice question is asked in every rotation of its options, so that each of them stands once at each
letter, and its answer is had in five ways:

    generated             the model answers, greedily, and the option is read off what it says; an answer that
                          cannot be read is wrong
    generated or guessed  the same, with a guess where it cannot be read, as chance would have it
    letter                the letter that is the likeliest answer
    option                the likeliest "A. text", as a whole: short ones have it easier
    option per token      the same divided by the number of its tokens

An answer's likelihood is that of all that training would have the model learn for it. A short-answer question
is only generated; it is right if what is said holds an accepted answer. Accuracies are those of the options'
own order; the other orders show whether a model goes by the letter.

--output is a directory: answers.jsonl has every single answer, result.json the figures.
"""

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from evaluation.intervals import of_share
from evaluation.likelihood import answer_ids, log_likelihoods
from evaluation.questions import LETTERS, Question, asked, read_questions
from evaluation.reading import chosen, is_accepted
from evaluation.tables import markdown
from inference.batch import answer_batch, check_room
from inference.generation import context_length, generation_config
from inference.options import load_chosen, model_options
from inference.resumable import Journal, held, record_of, refusals, say, work_through, write_rows, write_text
from training.common.errors import UserError, run_command
from training.text.encoding import encode_prompt

GENERATED, GUESSED, LETTER, OPTION, PER_TOKEN = WAYS = (
    "generated",
    "generated or guessed",
    "letter",
    "option",
    "option per token",
)

# The original's table of objective questions.
ORIGINAL_TITLE = "基础能力-客观题"
ORIGINAL_CATEGORIES = ("知识题", "语句理解题", "文学题", "逻辑推理题", "上下文阅读")

# Options that may change before a run is continued.
FREE_OPTIONS = ("questions", "output", "device", "batch_size")


@click.command(context_settings={"show_default": True})
@model_options
@click.option(
    "--questions", required=True, help="A file of questions, or a set on the hub: ceval/ceval-exam."
)
@click.option(
    "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory to write."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, help="Questions at a time.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, help="Longest answer that is generated."
)
def main(**options: Any) -> None:
    """Let a model answer questions, and count. Ctrl-C stops it, and the same command continues."""
    evaluate(SimpleNamespace(**options, seed=None))


def evaluate(options: SimpleNamespace) -> None:
    """Write --output. Raises UserError for what is wrong with the questions before the model is loaded."""
    result_file = options.output / "result.json"
    with refusals(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    with held(result_file):
        questions = read_questions(options.questions)
        tasks = [(question, rotation) for question in questions for rotation in range(question.rotations)]
        journal = Journal(result_file, record_of(options, {"--questions": digest(questions)}, FREE_OPTIONS))
        if len(journal.answers) < len(tasks):
            answer_rest(tasks, journal, options)
        judged = [judge(*task, journal.answers[row]) for row, task in enumerate(tasks)]
        write_rows(options.output / "answers.jsonl", judged)
        result = {"kind": "objective", "model": options.model, "questions": options.questions}
        result |= summary(judged)
        write_text(result_file, [json.dumps(result, ensure_ascii=False, indent=1) + "\n"])
        journal.path.unlink()
    print(report(result), end="")
    say(f"{options.output}: {len(questions):,} questions in {len(tasks):,} forms, {journal.seconds:,.0f} s")


def digest(questions: Sequence[Question]) -> str:
    return hashlib.blake2b(repr(questions).encode(), digest_size=16).hexdigest()


def answer_rest(tasks: Sequence[tuple[Question, int]], journal: Journal, options: SimpleNamespace) -> None:
    """Answer what is not in `journal`, the longest first, so that want of memory shows at once."""
    model, tokenizer = load_chosen(options, untaught=True)
    shown = [question.rotated(rotation) for question, rotation in tasks]
    prompts = [encode_prompt(asked(question), tokenizer) for question in shown]
    check_room([question.place for question in shown], prompts, context_length(model))
    config = generation_config(
        tokenizer, max_new_tokens=options.max_new_tokens, temperature=0, repetition_penalty=1.0
    )

    def answer(batch: list[int]) -> list[dict[str, Any]]:
        generated = answer_batch(model, tokenizer, [prompts[row] for row in batch], config)
        entries = [{"row": row} | given._asdict() for row, given in zip(batch, generated, strict=True)]
        choices = [entry for entry in entries if shown[entry["row"]].options]
        if not choices:
            return entries
        candidates = []
        for entry in choices:
            question = shown[entry["row"]]
            letters = LETTERS[: len(question.options)]
            candidates.append(answer_ids(asked(question), [*letters, *question.lines], tokenizer))
        totals = log_likelihoods(model, [prompts[entry["row"]] for entry in choices], candidates)
        for entry, several, total in zip(choices, candidates, totals, strict=True):
            if not all(map(math.isfinite, total)):
                raise UserError(
                    f"{options.model}: a likelihood is no number: the weights are broken, or overflow in "
                    f"--dtype {options.dtype}; try --dtype float32"
                )
            half = len(total) // 2
            entry |= {
                LETTER: total[:half],
                OPTION: total[half:],
                "tokens_of_option": [*map(len, several[half:])],
            }
        return entries

    rest = [row for row in range(len(tasks)) if row not in journal.answers]
    rest.sort(key=lambda row: len(prompts[row]), reverse=True)
    work_through(rest, journal, len(tasks), options.batch_size, answer)


def judge(question: Question, rotation: int, given: dict[str, Any]) -> dict[str, Any]:
    """A row of answers.jsonl: the question as it was asked, and what each way makes of it.

    A way that does not apply is in neither "chosen" nor "is_right"; what could not be read is null.
    """
    shown = question.rotated(rotation)
    row = {"place": shown.place, "category": shown.category, "question": shown.text, "rotation": rotation}
    if shown.options:
        row |= {"options": shown.options, "right": LETTERS[shown.right]}
        likelihoods = {LETTER: given[LETTER], OPTION: given[OPTION]}
        likelihoods[PER_TOKEN] = [
            total / tokens for total, tokens in zip(given[OPTION], given["tokens_of_option"], strict=True)
        ]
        row["log_likelihoods"] = likelihoods
        index = chosen(given["answer"], shown.options)
        picked = {GENERATED: index, GUESSED: guess(shown, rotation) if index is None else index}
        picked |= {way: values.index(max(values)) for way, values in likelihoods.items()}
        is_right = {way: index == shown.right for way, index in picked.items()}
        picked = {way: None if index is None else LETTERS[index] for way, index in picked.items()}
    else:
        row["accepted"] = shown.accepted
        picked = dict.fromkeys((GENERATED, GUESSED), given["answer"].strip() or None)
        is_right = dict.fromkeys(picked, is_accepted(given["answer"], shown.accepted))
    said = {"answer": given["answer"], "ended": given["ended"]}
    return row | said | {"chosen": picked, "is_right": is_right}


def guess(question: Question, rotation: int) -> int:
    """One of the options, the same one each time."""
    return random.Random(f"{question.text} {rotation}").randrange(len(question.options))


def summary(judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a guess would get, how the generated answers could be read, and the figures of each way."""
    choices = [row for row in judged if "options" in row]
    chances = [1 / len(row["options"]) for row in choices if row["rotation"] == 0]
    return {
        "asked": sum(row["rotation"] == 0 for row in judged),
        "chance": sum(chances) / len(chances) if chances else None,
        "unread": share(row["chosen"][GENERATED] is None for row in judged),
        "cut_off": share(not row["ended"] for row in judged),
        "ways": {way: figures_of(way, judged) for way in WAYS if choices or way in (GENERATED, GUESSED)},
    }


def figures_of(way: str, judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy in the options' own order, overall and by category; what the other orders show."""
    first = [row for row in judged if row["rotation"] == 0]
    categories = dict.fromkeys(row["category"] for row in first)
    figures: dict[str, Any] = {
        "overall": accuracy(way, first),
        "categories": {
            name: accuracy(way, [r for r in first if r["category"] == name]) for name in categories
        },
    }
    choices = [row for row in judged if "options" in row]
    if choices:
        rotations = range(1 + max(row["rotation"] for row in choices))
        figures["rotations"] = [
            accuracy(way, [r for r in choices if r["rotation"] == turn]) for turn in rotations
        ]
        figures["letters"] = letters(way, choices)
        figures["same_option_in_all"] = same_option_in_all(way, choices)
    return figures


def by(key: str, rows: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """The rows of each value of `key`, in the order in which the values first occur."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def accuracy(way: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Right answers, questions, their quotient and its 95 % interval; None where the way applies to none."""
    outcomes = [row["is_right"][way] for row in rows if way in row["is_right"]]
    if not outcomes:
        return None
    right, asked = sum(outcomes), len(outcomes)
    return {"right": right, "asked": asked, "accuracy": right / asked, "interval": of_share(right, asked)}


def letters(way: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of what was asked in all orders: the share for which each letter was chosen, by a way that chose one.

    Where all questions have as many options, a way that does not go by the letter chooses each as often.
    """
    picked = Counter(row["chosen"][way] for row in rows if row["chosen"].get(way))
    names = LETTERS[: max(len(row["options"]) for row in rows)]
    return {name: picked[name] / max(1, picked.total()) for name in names}


def same_option_in_all(way: str, rows: Sequence[dict[str, Any]]) -> float:
    """The share of questions for which it is one option, whatever its letter."""

    def text(row: dict[str, Any]) -> str | None:
        letter = row["chosen"].get(way)
        return row["options"][LETTERS.index(letter)] if letter else None

    choices = [{text(row) for row in several} for several in by("place", rows).values()]
    return share(len(texts) == 1 and None not in texts for texts in choices)


def share(truths: Iterable[bool]) -> float:
    truths = list(truths)
    return sum(truths) / len(truths)


def table(result: dict[str, Any]) -> dict[str, Any]:
    """The generated answers' accuracies as a table of scores, in the shape of the published ones.

    Questions of the original's categories count in its table; any others make a table of their own.
    """
    figures = result["ways"][GENERATED]
    categories = list(figures["categories"])
    is_original = set(categories) <= set(ORIGINAL_CATEGORIES)
    overall = figures["overall"]
    row = {"model": result["model"], "rank": 1, "mean": overall["accuracy"], "interval": overall["interval"]}
    return {
        "title": ORIGINAL_TITLE if is_original else f"客观题 {Path(result['questions']).name}",
        "kind": "objective",
        "score": "平均准确率",
        "categories": categories,
        "rows": [row | {"scores": [figures["categories"][name]["accuracy"] for name in categories]}],
    }


def report(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    ways = result["ways"]

    def line(name: str, figure: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *map(figure, ways.values())]

    rows = [line("all", lambda way: _shown(way["overall"]))]
    for name in ways[GENERATED]["categories"]:
        rows.append(line(name, lambda way, name=name: _shown(way["categories"][name])))
    text = markdown(["accuracy, 95 % interval", *ways], rows)
    text += f"\n{result['unread']:.1%} of the generated answers could not be read, "
    text += f"{result['cut_off']:.1%} were cut off.\n"
    if result["chance"] is None:
        return text
    rows = []
    for turn in range(len(ways[GENERATED]["rotations"])):
        rows.append(line(f"options rotated by {turn}", lambda way, turn=turn: _shown(way["rotations"][turn])))
    for name in ways[GENERATED]["letters"]:
        rows.append(line(f"{name} is chosen", lambda way, name=name: f"{way['letters'][name]:.1%}"))
    rows.append(line("one option in all orders", lambda way: f"{way['same_option_in_all']:.1%}"))
    text += f"\nMultiple choice, where a guess is right in {result['chance']:.1%}:\n\n"
    return text + markdown(["", *ways], rows)


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    low, high = figure["interval"]
    return f"{figure['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {figure['asked']:,}"


if __name__ == "__main__":
    run_command(main)
