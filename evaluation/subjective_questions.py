"""Read subjective questions, and the answers of models to them."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from evaluation.ratings import Item
from training.common.console import say
from training.common.errors import UserError
from training.data.reader import read_rows


class SubjectiveQuestion(NamedTuple):
    """A question without a right answer.

    domain: the table that it counts in. category: the column, "" where the table has none.
    """

    domain: str
    category: str
    question: str


def read_subjective_questions(path: str) -> list[SubjectiveQuestion]:
    """The questions of a file of {"domain", "category", "question"}.

    Raises UserError with the place of a row at fault.
    """
    questions: dict[SubjectiveQuestion, str] = {}
    for place, row in read_rows(path):
        try:
            question = SubjectiveQuestion(*_texts(row, SubjectiveQuestion._fields, may_lack="category"))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        if question in questions:
            raise UserError(f"{place}: the same question as {questions[question]}; take one of them out")
        questions[question] = place
    if not questions:
        raise UserError(f"{path}: no questions")
    return list(questions)


def read_answers(paths: Sequence[str]) -> list[Item]:
    """The answers of several models, in files of {"domain", "category", "question", "model", "answer"}.

    Raises UserError unless every model has answered the same questions, each once.
    """
    items: list[Item] = []
    refused = 0
    for path in paths:
        for place, row in read_rows(path):
            if isinstance(row, dict) and "failed" in row:
                raise UserError(
                    f"{place}: the server gave no answer ({row['failed']}); ask again into a new file, or "
                    "take this question out of the files of all models"
                )
            refused += isinstance(row, dict) and "refused" in row
            try:
                items.append(Item(*_texts(row, Item._fields, may_lack="category")))
            except ValueError as error:
                raise UserError(f"{place}: {error}; --answers names what `ask` wrote") from None
    if not items:
        raise UserError(f"{', '.join(paths)}: no answers")
    if refused:
        say(f"{refused} questions were refused; the raters see them with an empty answer", on_stderr=True)
    questions = dict.fromkeys(item[:3] for item in items)
    for model in dict.fromkeys(item.model for item in items):
        times = Counter(item[:3] for item in items if item.model == model)
        for question in questions:
            if times[question] != 1:
                raise UserError(
                    f"{model} has {times[question]} answers to {question[2]!r}; each model answers each of "
                    "the questions once"
                )
    return items


def _texts(row: Any, names: Sequence[str], may_lack: str) -> list[str]:
    """The texts that a row has under these names. Raises ValueError naming the field at fault."""
    if not isinstance(row, dict):
        raise ValueError("a row is an object")
    texts = []
    for name in names:
        text = row.get(name)
        if text is None and name == may_lack:
            text = ""
        if not isinstance(text, str) or not (text.strip() or name in (may_lack, "answer")):
            raise ValueError(f'"{name}" is missing, empty, or not text')
        texts.append(text)
    try:
        json.dumps(texts, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
    return texts
