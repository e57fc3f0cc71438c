"""Objective questions: read from a file or from a set on the hub, and asked as a human would.

{"category": "知识题", "passage": "...", "question": "...", "options": ["...", "..."], "answer": "B"}
{"category": "知识题", "question": "...", "answer": "206"}         or a list of accepted answers
{"question": "...", "A": "...", "B": "...", "answer": "A"}        the columns of C-Eval and CMMLU, in any case
"""

import contextlib
import csv
import io
import json
import os
import re
import string
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.common.errors import UserError, first_line
from training.common.hub import check_on_hub
from training.data.reader import read_rows
from training.text.conversation import Conversation, Turn

LETTERS = string.ascii_uppercase

# The category of a row that has none.
NO_CATEGORY = "none"

# Splits that hold questions with their answers, in the order of preference; others hold worked examples.
SPLITS = ("validation", "val", "test", "train")

# CMMLU lies on the hub as an archive of tables with a loading script, which datasets no longer runs.
CMMLU_ARCHIVE = "cmmlu_v1_0_1.zip"


@dataclass(frozen=True)
class ObjectiveQuestion:
    """A question with one right option, or with a short answer.

    options, right: of a multiple-choice question, the options and the index of the right one. accepted: of a
    short-answer question, the answers that count as right.
    """

    place: str
    category: str
    text: str
    options: tuple[str, ...] = ()
    right: int | None = None
    accepted: tuple[str, ...] = ()

    @property
    def rotations(self) -> int:
        """The number of orders in which it is asked, so that each option stands once at each letter."""
        return max(1, len(self.options))

    def rotated(self, rotation: int) -> "ObjectiveQuestion":
        """The question with its first `rotation` options moved behind the others."""
        if not self.options:
            return self
        options = self.options[rotation:] + self.options[:rotation]
        right = (self.right - rotation) % len(options)
        return ObjectiveQuestion(self.place, self.category, self.text, options, right)

    @property
    def lines(self) -> list[str]:
        """The options as they stand in the question, each behind its letter."""
        return [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]


def as_conversation(question: ObjectiveQuestion, answer: str | None = None) -> Conversation:
    """The question as a human puts it, for a model to answer; or with the answer that a model would give."""
    is_chinese = re.search(r"[\u4e00-\u9fff]", question.text)
    if question.options:
        how = (
            "请选出正确的一项，先写它的字母。"
            if is_chinese
            else "Choose the right one. Begin with its letter."
        )
    else:
        how = "请直接写出答案。" if is_chinese else "Give the answer alone."
    return Conversation((Turn("\n".join([question.text, *question.lines, how]), answer),))


def read_objective_questions(name: str) -> list[ObjectiveQuestion]:
    """The questions of a file, or of a set on the hub. Raises UserError with the place of a row at fault."""
    questions = []
    for place, row in _rows(name):
        try:
            questions.append(question_of(place, row))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not questions:
        raise UserError(f"{name}: no questions")
    return questions


def question_of(place: str, row: Any) -> ObjectiveQuestion:
    """The question of a row. Raises ValueError naming the field at fault."""
    if not isinstance(row, dict):
        raise ValueError("a question is an object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
    row = {key if key in LETTERS else key.lower(): value for key, value in row.items() if value is not None}
    text = _text(row, "question")
    if row.get("passage"):
        text = f"{_text(row, 'passage')}\n\n{text}"
    category = _text(row, "category") if "category" in row else NO_CATEGORY
    if "options" in row or "A" in row:
        options = _options(row)
        return ObjectiveQuestion(
            place, category, text, options, right=_right_option(row.get("answer"), options)
        )
    return ObjectiveQuestion(place, category, text, accepted=_accepted_answers(row.get("answer")))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{key}" is missing, empty, or not text')
    return value.strip()


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    options = row.get("options", [row[letter] for letter in LETTERS if letter in row])
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f'"options" is not a list of 2 to {len(LETTERS)}')
    options = [str(option).strip() if isinstance(option, str | int | float) else "" for option in options]
    if not all(options):
        raise ValueError('"options" has one that is empty, or not text')
    labels = [
        re.match(rf"\(?{letter}[).．、:：]\s*", text) for letter, text in zip(LETTERS, options, strict=False)
    ]
    if all(labels):  # the file has letters of its own in front
        options = [text[label.end() :] for label, text in zip(labels, options, strict=True)]
    if len(set(options)) < len(options):
        raise ValueError('"options" has the same one twice')
    return tuple(options)


def _right_option(answer: Any, options: tuple[str, ...]) -> int:
    if isinstance(answer, str) and answer.strip() in options:
        return options.index(answer.strip())
    letters = LETTERS[: len(options)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    raise ValueError(f'"answer" is {answer!r}: neither one of {", ".join(letters)} nor one of the options')


def _accepted_answers(answer: Any) -> tuple[str, ...]:
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        raise ValueError('"answer" is neither text nor a list of accepted texts')
    return tuple(one.strip() for one in answers)


def _rows(name: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file, or of all subjects of a set on the hub; each subject is a category."""
    if os.path.exists(name) or name.count("/") != 1 or name.endswith((".json", ".jsonl")):
        return read_rows(name)
    check_on_hub(name, "dataset")
    return _rows_of_archive(name) if name.endswith("/cmmlu") else _rows_of_subjects(name)


def _rows_of_subjects(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a set that has a configuration for each subject, as C-Eval has."""
    import datasets  # slow to import, and only needed here

    with _reading_from_hub(name):
        for subject in datasets.get_dataset_config_names(name):
            split_names = datasets.get_dataset_split_names(name, subject)
            split = next((split for split in SPLITS if split in split_names), split_names[0])
            for number, row in enumerate(datasets.load_dataset(name, subject, split=split), start=1):
                yield f"{name}:{subject}:{number}", {"category": subject} | row


def _rows_of_archive(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of CMMLU, which has a table for each subject under test/."""
    import huggingface_hub

    with _reading_from_hub(name):
        path = huggingface_hub.hf_hub_download(name, CMMLU_ARCHIVE, repo_type="dataset")
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.namelist()):
                if not re.fullmatch(r"test/\w+\.csv", member):
                    continue
                subject = member.removeprefix("test/").removesuffix(".csv")
                text = archive.read(member).decode("utf-8-sig")
                for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=1):
                    yield f"{name}:{subject}:{number}", {"category": subject} | row


@contextlib.contextmanager
def _reading_from_hub(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: the hub's set cannot be read ({first_line(error)})") from None
