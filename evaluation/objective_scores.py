"""Which answers to objective questions are right, in each of five ways, and the figures of that."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation.intervals import share_interval
from evaluation.objective_questions import LETTERS, ObjectiveQuestion
from evaluation.reading import is_accepted, read_choice, read_choices
from evaluation.tables import markdown

GENERATED, GUESSED, LETTER, OPTION, PER_TOKEN = WAYS = (
    "generated",
    "generated or guessed",
    "letter",
    "option",
    "option per token",
)

# The title and the categories of the original's table of objective questions.
ORIGINAL_TITLE = "基础能力-客观题"
ORIGINAL_CATEGORIES = ("知识题", "语句理解题", "文学题", "逻辑推理题", "上下文阅读")


def judge(question: ObjectiveQuestion, rotation: int, entry: dict[str, Any]) -> dict[str, Any]:
    """A row of answers.jsonl: the question as it was asked, what each way chooses, and whether that is right.

    entry: the answer and likelihoods, as the journal has them. A way that does not apply is in neither
    "chosen" nor "is_right"; an answer that could not be read is null.
    """
    shown = question.rotated(rotation)
    row = {"place": shown.place, "category": shown.category, "question": shown.text, "rotation": rotation}
    if shown.options:
        row |= {"options": shown.options, "right": letters_of(shown.all_right)}
        if shown.has_several:
            chosen = read_choices(entry["answer"], shown.options)
        else:
            chosen = frozenset({read_choice(entry["answer"], shown.options)} - {None})
        sets = {GENERATED: chosen, GUESSED: chosen or guess(shown, rotation)}
        if not shown.has_several:
            likelihoods = {LETTER: entry[LETTER], OPTION: entry[OPTION]}
            likelihoods[PER_TOKEN] = [
                total / tokens for total, tokens in zip(entry[OPTION], entry["tokens_of_option"], strict=True)
            ]
            row["log_likelihoods"] = likelihoods
            sets |= {way: frozenset({values.index(max(values))}) for way, values in likelihoods.items()}
        is_right = {way: indices == shown.all_right for way, indices in sets.items()}
        choices = {way: letters_of(indices) or None for way, indices in sets.items()}
    else:
        row["accepted"] = shown.accepted
        choices = dict.fromkeys((GENERATED, GUESSED), entry["answer"].strip() or None)
        is_right = dict.fromkeys(choices, is_accepted(entry["answer"], shown.accepted))
    said = {"answer": entry["answer"], "ended": entry["ended"]}
    return row | said | {"chosen": choices, "is_right": is_right}


def letters_of(indices: Iterable[int]) -> str:
    """ "ABD" for the indices 0, 1 and 3."""
    return "".join(LETTERS[index] for index in sorted(indices))


def guess(question: ObjectiveQuestion, rotation: int) -> frozenset[int]:
    """The index of a random option, or a random set of them, which is the same for each call."""
    rng = random.Random(f"{question.text} {rotation}")
    if not question.has_several:
        return frozenset({rng.randrange(len(question.options))})
    bits = rng.randrange(1, number_of_choices(len(question.options), has_several=True) + 1)
    return frozenset(index for index in range(len(question.options)) if bits >> index & 1)


def number_of_choices(options: int, has_several: bool) -> int:
    """How many answers a question has: its options, or all sets of them but the empty one."""
    return 2**options - 1 if has_several else options


def objective_figures(judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The accuracy of a guess, the shares of unread and of cut-off answers, and the figures of each way."""
    choices = [row for row in judged if "options" in row]
    chances = [
        1 / number_of_choices(len(row["options"]), len(row["right"]) > 1)
        for row in choices
        if row["rotation"] == 0
    ]
    return {
        "asked": sum(row["rotation"] == 0 for row in judged),
        "chance": sum(chances) / len(chances) if chances else None,
        "unread": share(row["chosen"][GENERATED] is None for row in judged),
        "cut_off": share(not row["ended"] for row in judged),
        "ways": {
            way: way_figures(way, judged) for way in WAYS if any(way in row["is_right"] for row in judged)
        },
    }


def way_figures(way: str, judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A way's accuracy in the options' own order, overall and by category, and what other orders show."""
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
        figures["letters"] = letter_shares(way, choices)
        figures["same_option_in_all"] = same_option_in_all(way, choices)
    return figures


def group_rows(key: str, rows: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
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
    return {
        "right": right,
        "asked": asked,
        "accuracy": right / asked,
        "interval": share_interval(right, asked),
    }


def letter_shares(way: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each letter, its share of all choices of a way, over all orders of the options.

    Where all questions have the same number of options, a way that does not go by the letter chooses each
    letter equally often.
    """
    choices = Counter(letter for row in rows for letter in row["chosen"].get(way) or "")
    names = LETTERS[: max(len(row["options"]) for row in rows)]
    return {name: choices[name] / max(1, choices.total()) for name in names}


def same_option_in_all(way: str, rows: Sequence[dict[str, Any]]) -> float:
    """The share of questions for which a way chooses the same option in all orders, whatever its letter."""

    def texts(row: dict[str, Any]) -> frozenset[str]:
        return frozenset(row["options"][LETTERS.index(letter)] for letter in row["chosen"][way] or "")

    rows = [row for row in rows if way in row["chosen"]]
    choices = [{texts(row) for row in several} for several in group_rows("place", rows).values()]
    return share(len(chosen) == 1 and frozenset() not in chosen for chosen in choices)


def share(truths: Iterable[bool]) -> float:
    """The share of the truths, at least one, that are true."""
    truths = list(truths)
    return sum(truths) / len(truths)


def objective_table(result: dict[str, Any]) -> dict[str, Any]:
    """The accuracies of the generated answers as a table of scores, in the shape of the published ones.

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


def objective_report(result: dict[str, Any]) -> str:
    """The result of an evaluation with objective questions, as Markdown."""
    ways = result["ways"]

    def line(name: str, figure: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *map(figure, ways.values())]

    rows = [line("all", lambda way: accuracy_text(way["overall"]))]
    for name in ways[GENERATED]["categories"]:
        rows.append(line(name, lambda way, name=name: accuracy_text(way["categories"][name])))
    text = markdown(["accuracy, 95 % interval", *ways], rows)
    text += f"\n{result['unread']:.1%} of the generated answers could not be read, "
    text += f"{result['cut_off']:.1%} were cut off.\n"
    if result["chance"] is None:
        return text
    rows = []
    for turn in range(len(ways[GENERATED]["rotations"])):
        rows.append(
            line(f"options rotated by {turn}", lambda way, turn=turn: accuracy_text(way["rotations"][turn]))
        )
    for name in ways[GENERATED]["letters"]:
        rows.append(line(f"{name} is chosen", lambda way, name=name: f"{way['letters'][name]:.1%}"))
    rows.append(line("one option in all orders", lambda way: f"{way['same_option_in_all']:.1%}"))
    text += f"\nMultiple choice, where a guess is right in {result['chance']:.1%}:\n\n"
    return text + markdown(["", *ways], rows)


def accuracy_text(figure: dict[str, Any] | None) -> str:
    """A figure of `accuracy` as a cell of a table, or a dash where there is none."""
    if figure is None:
        return "–"
    low, high = figure["interval"]
    return f"{figure['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {figure['asked']:,}"
