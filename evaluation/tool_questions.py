"""Questions that want tools to be called, or none: each answer of a row to train on, or rows of their own.

{"messages": [...], "tools": [...]}                          a row that training reads, or one such as
{"question": "1美元兑多少？", "calls": [{"name": "exchange_rate", "arguments": {...}}], "answer": "7.12"}
{"question": "谢谢", "calls": []}                             where no tool is to be called

Each turn of a row to train on is a question, after the turns before it as they stand in the row. What its
answer has to hold is what the row's own answer holds of the results:

results                     answer of the row           held
{"正面": 12, "负面": 148}    负面148条。                  148
"8800-1101"                 请拨打8800-1101。            8800-1101
{"error": "没有泰铢的汇率"}   查不到泰铢的汇率。            nothing, and the answer is not looked at

Rows of the other form declare their tools in "tools", or have those of the file of --tools, which gives the
results. "answer", which may be missing, is what has to be held: a text or a number, or a list of them.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from evaluation.letters import THOUGHTS, clean
from evaluation.reading import compact, occurs
from training.common.console import say
from training.common.errors import UserError
from training.data.audit import rows_text
from training.data.reader import read_rows
from training.text.calls import Call, declared_name, read_call
from training.text.conversation import Conversation, LeftOut, Turn, read_row
from training.text.keys import is_absent, is_bookkeeping, kind_of, nonblank_text
from training.text.tool_messages import OpenCalls, read_tools
from training.text.turns import ToolUse

# The keys of a row of its own, by the second of which it is known.
QUESTION, CALLS, ANSWER, TOOLS = "question", "calls", "answer", "tools"

# A number, in a text or as a whole; a comma stands before each three digits, or nowhere.
NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?"
WHOLE_NUMBER = re.compile(rf"\s*[+-]?(?:{NUMBER})(?:[eE][+-]?\d{{1,3}})?\s*")


class ToolQuestion(NamedTuple):
    """What a person asks, which calls it takes, and what the answer has to hold.

    conversation: ends with the question; it declares the tools. uses: the calls that are right, each with its
    recorded results, if there are any. held: the texts and numbers that a right answer holds, or none where
    the answer is not looked at.
    """

    place: str
    conversation: Conversation
    uses: tuple[ToolUse, ...] = ()
    held: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What the person asks."""
        return self.conversation.turns[-1].human

    @property
    def expected(self) -> list[Call]:
        """The calls that are right, all together."""
        return [read_call(call) for use in self.uses for call in use.calls]

    @property
    def ends_with_calls(self) -> bool:
        """Whether the row ends with calls, whose results and answer it does not have."""
        return bool(self.uses) and not self.uses[-1].results


def read_tool_questions(path: str, offered: Sequence[str] | None = None) -> list[ToolQuestion]:
    """The questions of a file. Rows that training leaves out are counted on the terminal.

    offered: the declarations of the file of --tools, for rows that declare none, or None where there is no
    such file. Raises UserError with the place of a row at fault, and of one whose calls have no results where
    there is no such file.
    """
    questions, left_out = [], 0
    for place, row in read_rows(path):
        try:
            found = list(_questions_of(place, row, offered))
        except LeftOut:
            left_out += 1
            continue
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        questions += found
    if left_out:
        what = "left out, feedback that calls the answer a bad one"
        say(f"{path}: {what}: {rows_text(left_out)}", on_stderr=True)
    if not questions:
        raise UserError(f"{path}: no questions")
    return questions


def _questions_of(place: str, row: Any, offered: Sequence[str] | None) -> Iterator[ToolQuestion]:
    if isinstance(row, dict) and CALLS in row:
        if not is_absent(row[CALLS]) and offered is None:
            raise ValueError(f'"{CALLS}" without results; give --tools, the file with the functions')
        questions = [_own_question(place, row, tuple(offered or ()))]
    else:
        questions = _questions_of_turns(place, read_row(row).to_learn(), tuple(offered or ()))
    for question in questions:
        _check_offered(question, offered)
        yield question


def _questions_of_turns(
    place: str, conversation: Conversation, offered: tuple[str, ...]
) -> Iterator[ToolQuestion]:
    if not conversation.tools:
        conversation = replace(conversation, tools=offered)
    several = len(conversation.turns) > 1
    for index, turn in enumerate(conversation.turns):
        if all(is_context for _, is_context in turn.answers()):
            continue
        asked = replace(conversation, turns=(*conversation.turns[:index], Turn(turn.human)))
        held = held_by(turn.yayi or "", turn)
        yield ToolQuestion(f"{place} turn {index + 1}" if several else place, asked, turn.tool_uses, held)


def _own_question(place: str, row: dict[str, Any], offered: tuple[str, ...]) -> ToolQuestion:
    unknown = [key for key in row if key not in (QUESTION, CALLS, ANSWER, TOOLS)]
    unknown = [f'"{key}"' for key in unknown if not is_bookkeeping(key, row[key])]
    if unknown:
        raise ValueError(
            f'a question with "{CALLS}" has beside them "{QUESTION}", "{ANSWER}" and "{TOOLS}"; take '
            f"{', '.join(unknown)} out"
        )
    tools = read_tools(row.get(TOOLS), f'"{TOOLS}"') or offered
    asked = Conversation((Turn(nonblank_text(row.get(QUESTION), f'"{QUESTION}"')),), tools=tools)
    calls = row[CALLS]
    uses = () if is_absent(calls) else (OpenCalls(calls, f'"{CALLS}"', tools).left_open(),)
    return ToolQuestion(place, asked, uses, tuple(_held_texts(row.get(ANSWER))))


def _held_texts(answer: Any) -> Iterator[str]:
    if is_absent(answer):
        return
    for value in answer if isinstance(answer, list) else [answer]:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f'"{ANSWER}" is {kind_of(value)}, neither text nor a number nor a list of them')
        yield nonblank_text(str(value), f'"{ANSWER}"')


def _check_offered(question: ToolQuestion, offered: Sequence[str] | None) -> None:
    """Raise ValueError for a question whose right calls the file of --tools, where there is one, lacks."""
    names = {call.name for call in question.expected} if offered is not None else set()
    for name in sorted(names - set(map(declared_name, offered or ()))):
        raise ValueError(f"it calls {name!r}, and the file of --tools has no such function")


def held_by(answer: str, turn: Turn) -> tuple[str, ...]:
    """What an answer holds of the results in a turn, and the question does not: texts and numbers."""
    found = []
    for use in turn.tool_uses:
        for result in use.results:
            for value in _values_of(result):
                if holds(answer, value):
                    found.append(value)
                elif not WHOLE_NUMBER.fullmatch(value):
                    found += [number for number in re.findall(NUMBER, value) if holds(answer, number)]
    return tuple(dict.fromkeys(value for value in found if not holds(turn.human, value)))


def _values_of(result: str) -> list[str]:
    """The texts and the numbers in a result: those of its JSON, or the whole of what is none."""
    try:
        return list(_leaves(json.loads(result, parse_int=str, parse_float=str, parse_constant=str)))
    except (ValueError, RecursionError):
        return [result]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value if isinstance(value, list) else value.values():
            yield from _leaves(part)


def holds(answer: str, value: str) -> bool:
    """Whether an answer has a value in it: a number by its value, whatever its sign, and a text whatever its
    width, case, spaces and punctuation. What a model thinks aloud before its answer does not count.
    """
    said = clean(_with_plain_commas(answer), THOUGHTS)
    if WHOLE_NUMBER.fullmatch(value):
        return _number(value) in map(_number, re.findall(NUMBER, said))
    return occurs(compact(_with_plain_commas(value)), compact(said))


def _with_plain_commas(text: str) -> str:
    """The text with Chinese commas as 、, since NFKC makes of them those that stand within numbers."""
    return text.replace("，", "、")


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", "")).copy_abs()
