"""Objective questions: read from a file or from a set on the hub, and asked as a human would.

{"category": "知识题", "passage": "...", "question": "...", "options": ["...", "..."], "answer": "B"}
{"category": "知识题", "question": "...", "answer": "206"}         or a list of accepted answers
{"question": "...", "A": "...", "B": "...", "answer": "A"}        the columns of C-Eval and CMMLU, in any case
{"question": "...", "choices": {"A": "...", "B": "...", "C": "..."}, "answer": "AC"}    several are right
"""

import contextlib
import csv
import io
import json
import os
import re
import string
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.common.console import say
from training.common.errors import UserError, first_line
from training.common.hub import check_on_hub
from training.data.reader import read_rows
from training.text.conversation import Conversation, Turn

LETTERS = string.ascii_uppercase

# The category of a row that has none.
NO_CATEGORY = "none"

# Splits that hold questions with their answers, in the order of preference; others hold worked examples.
SPLITS = ("validation", "val", "test", "train")

# What a row without options may have beside a one-letter answer; anything else could be its options.
FREE_KEYS = {"question", "passage", "category", "answer", "id", "explanation", ""}

# The names of an option's column: "A", "a", "Option A", "option_a", "选项A".
OPTION_COLUMN = re.compile(
    r"(?:(?i:option|choice|opt)(?:[\s_-]+|(?=[A-RT-Z]$))|选项\s*)?([A-Za-z])(?:选项|项)?"  # not "OPTIONS"
)

# An answer that names letters, perhaps one with its option's text: "B", "(b)", "ABD", "A、B", "B. 乙".
LETTERS_ANSWER = re.compile(
    r"(?:[Oo]ption\s*|选项\s*)?[(\[]?([A-Z](?:[\s,;、/和&]*[A-Z])+|[A-Za-z])[)\]]?(?:[.、:)]\s*(.*))?"
)

# An answer that would be letters if there were options: one, or a few of the first in their order, "ABD".
LETTERS_ALONE = re.compile(r"[(\[]?(?:[A-Za-z]|(?=[A-F])A?B?C?D?E?F?)[)\]]?[.、]?")

# CMMLU lies on the hub as an archive of tables with a loading script, which datasets no longer runs.
CMMLU_ARCHIVE = "cmmlu_v1_0_1.zip"


@dataclass(frozen=True)
class ObjectiveQuestion:
    """A question with one right option, with several that are right together, or with a short answer.

    options, right: of a multiple-choice question, the options and the index of the right one, or the indices
    of several. accepted: of a short-answer question, the answers that count as right.
    """

    place: str
    category: str
    text: str
    options: tuple[str, ...] = ()
    right: int | tuple[int, ...] | None = None
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
        moved = tuple(sorted((index - rotation) % len(options) for index in self.all_right))
        return ObjectiveQuestion(
            self.place, self.category, self.text, options, moved if self.has_several else moved[0]
        )

    @property
    def has_several(self) -> bool:
        """Whether several options are right, and all of them are to be chosen."""
        return isinstance(self.right, tuple)

    @property
    def all_right(self) -> frozenset[int]:
        """The indices of the right options."""
        right = self.right if isinstance(self.right, tuple) else (self.right,)
        return frozenset(index for index in right if index is not None)

    @property
    def lines(self) -> list[str]:
        """The options as they stand in the question, each behind its letter."""
        return [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]


def as_conversation(question: ObjectiveQuestion, answer: str | None = None) -> Conversation:
    """The question as a human puts it, for a model to answer; or with the answer that a model would give."""
    is_chinese = re.search(r"[\u4e00-\u9fff]", question.text)
    if question.has_several:
        how = (
            "请选出所有正确的选项，先写它们的字母。"
            if is_chinese
            else "Choose all that are right. Begin with their letters."
        )
    elif question.options:
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
    rows = list(_rows(name))
    numbers = {place: number for place, row in rows if (number := _number_of_option(row)) is not None}
    first = 0 if 0 in numbers.values() else 1
    if numbers:
        say(f'{name}: numbers in "answer" ({len(numbers):,}): {first} is the first option', on_stderr=True)
    questions = []
    for place, row in rows:
        try:
            questions.append(question_of(place, row, first))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
    if not questions:
        raise UserError(f"{name}: no questions")
    return questions


def question_of(place: str, row: Any, first_number: int = 1) -> ObjectiveQuestion:
    """The question of a row. Raises ValueError naming the field at fault.

    first_number: the number by which an answer means the first option.
    """
    if not isinstance(row, dict):
        raise ValueError("a question is an object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
    fields = _fields(row)
    text = _text(fields, "question")
    if fields.get("passage"):
        text = f"{_text(fields, 'passage')}\n\n{text}"
    category = _text(fields, "category") if "category" in fields else NO_CATEGORY
    options = _options(fields)
    if options:
        right = _right_options(fields.get("answer"), options, first_number)
        return ObjectiveQuestion(place, category, text, options, right=right)
    accepted = _accepted_answers(fields.get("answer"))
    unknown = [key for key in row if key.lower() not in FREE_KEYS]
    if unknown and any(LETTERS_ALONE.fullmatch(_plain(one)) for one in accepted):
        raise ValueError(
            f'"answer" is {fields["answer"]!r}, a letter, and there are no options, which stand in "options" '
            f"or in columns A, B, C, ...; where it is no option's letter, take {_quoted(unknown)} out"
        )
    for key in unknown:
        if isinstance(row[key], list) and set(accepted) <= {str(value) for value in row[key]}:
            raise ValueError(f'"{key}" has the answer in it; if it has the options, call it "options"')
    return ObjectiveQuestion(place, category, text, accepted=accepted)


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """What a row has, by names in small letters; what stands in an option's column, by its capital letter."""
    fields = {}
    for key, value in row.items():
        letter = OPTION_COLUMN.fullmatch(key.strip())
        name = letter[1].upper() if letter else key.strip().lower()
        if name in fields and value is not None:
            raise ValueError(f'"{key}" stands there twice, in another spelling; leave one of them')
        if value is not None:
            fields[name] = value
    return fields


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{key}" is missing, empty, or not text')
    return value.strip()


def _options(fields: dict[str, Any]) -> tuple[str, ...]:
    """The options of a row, from a list, or by their letters from an object or from columns."""
    columns = {letter: fields[letter] for letter in LETTERS if letter in fields}
    given = {name: fields[name] for name in ("options", "choices") if name in fields}
    if columns.keys() & {"A", "B"}:
        given["columns A, B, ..."] = columns
    if not given:
        return ()
    (name, options), *others = given.items()
    if others:
        raise ValueError(f"options stand in {_quoted([*given])}; leave one of them")
    if isinstance(options, dict):
        options = _by_letter(_fields(options))
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f'"{name}" is not a list of 2 to {len(LETTERS)}')
    texts = [str(option).strip() if isinstance(option, str | int | float) else "" for option in options]
    if not all(texts):
        raise ValueError(f'"{name}" has one that is empty, or not text')
    labels = [
        re.match(rf"\(?{letter}[).．、:：]\s*", text) for letter, text in zip(LETTERS, texts, strict=False)
    ]
    if all(labels):  # the file has letters of its own in front
        texts = [text[label.end() :] for label, text in zip(labels, texts, strict=True) if label]
    if len(set(texts)) < len(texts):
        raise ValueError(f'"{name}" has the same one twice')
    return tuple(texts)


def _by_letter(options: dict[str, Any]) -> list[Any]:
    """The values by the letters A, B, C, ...; empty ones behind the last are left out."""
    filled = {letter: value for letter, value in options.items() if str(value).strip()}
    letters = LETTERS[: len(filled)]
    for letter in filled:
        if letter not in letters:
            missing = next(one for one in letters if one not in filled)
            raise ValueError(f'there is an option "{letter}", and "{missing}" is missing or empty')
    return [filled[letter] for letter in letters]


def _right_options(answer: Any, options: tuple[str, ...], first_number: int) -> int | tuple[int, ...]:
    """The index of the right option, or the indices of several. Raises ValueError where that is not clear."""
    answers = answer if isinstance(answer, list) else [answer]
    found: set[int] = set()
    for one in answers:
        readings = _readings(one, options, first_number)
        if len(readings) > 1:
            raise ValueError(
                f'"answer" is {one!r}, the letter of one option and the text of another; write it as '
                + " or ".join(repr(f"{LETTERS[at]}. {options[at]}") for at in sorted(map(min, readings)))
            )
        if not readings:
            letters = ", ".join(LETTERS[: len(options)])
            raise ValueError(f'"answer" is {answer!r}: neither one of {letters} nor one of the options')
        found |= readings.pop()
    return tuple(sorted(found)) if len(found) > 1 else min(found)


def _readings(answer: Any, options: tuple[str, ...], first_number: int) -> set[frozenset[int]]:
    """What an answer may mean, as sets of indices: an option's text, letters, or else a number."""
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        return set()
    text = _plain(str(answer))
    readings = {frozenset({index}) for index, option in enumerate(options) if _plain(option) == text}
    named = LETTERS_ANSWER.fullmatch(text)
    if named:
        indices = [LETTERS.index(letter) for letter in re.findall("[A-Z]", named[1].upper())]
        if max(indices) >= len(options) or len(set(indices)) < len(indices):
            return readings
        if len(indices) > 1:
            is_meant = not named[2] and not readings  # the text of one option, "AB", is no two letters
        else:
            is_meant = not named[2] or _plain(options[indices[0]]) == named[2]
        if is_meant:
            readings.add(frozenset(indices))
    elif not readings and text.isdecimal() and 0 <= int(text) - first_number < len(options):
        readings.add(frozenset({int(text) - first_number}))
    return readings


def _number_of_option(row: Any) -> int | None:
    """The number that a row has for an answer where it has options, and none of them has it for its text."""
    if not isinstance(row, dict):
        return None
    try:
        fields = _fields(row)
        options = _options(fields)
    except ValueError:  # which `question_of` names with its place
        return None
    answer = fields.get("answer")
    text = _plain(str(answer))
    if isinstance(answer, bool) or not isinstance(answer, str | int) or not text.isdecimal():
        return None
    return int(text) if options and text not in map(_plain, options) else None


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
