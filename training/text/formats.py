"""The table of row formats: how a row of each is recognised, read and written.

{"instruction", "input", "output", "system", "history"}             one turn, or the last of several
{"question", "answer"}, {"prompt", "completion"}, ...               the same by other names
{"system", "conversations": [{"from": "human"|"yayi", "value"}]}    YaYi multi-round
{"conversations": [{"from": "system"|"human"|"gpt", "value"}]}      ShareGPT
{"messages": [{"role": "system"|"user"|"assistant", "content"}]}    chat messages
{"prompt": [messages], "completion": [messages]}                    chat messages, the answer apart: only
                                                                    what is in it is learnt
{"messages": [the last is the human's], "output": "..."}            the last answer in a column of its own

Beside a list of messages, "tools" declares tools, which messages call, as `tool_messages.py` reads them.

A new format is a function that reads a row of it, one that writes it if `training.convert` is to have it in
`--to`, and one entry in FORMATS.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from training.common.columns import ASKED
from training.text.keys import NO_ANSWER, Keys, Row, as_text, is_absent, kind_of, nonblank_text
from training.text.messages import Messages
from training.text.tool_messages import read_tools
from training.text.turns import Conversation, Turn
from training.text.written import write_chat_messages, write_conversations, write_instruction

# The columns that hold an answer, and those that hold what a question is about.
ANSWERS = ("output", "response", "completion", "answer", "target")
EXTRAS = ("input", "context")

# What helps with a row whose columns the recipe cannot tell.
NAME_THEM = (
    "`--columns question=...,answer=...`, of training.trainer, training.check and training.convert, says "
    "which to read"
)


class Reading(NamedTuple):
    """What the function of a format gives.

    no_answer: the error where the last answer is wanted and missing. is_dialogue: whether the row is a list
    of messages. messages: the keys of those that have more than text and speaker. other_system: whether the
    row has a second system text, which a system message has replaced. broken_end: what is wrong after the
    last answer, or "". broken_answer: what is wrong with the last answer, which the conversation then lacks,
    or "".
    """

    conversation: Conversation
    no_answer: str
    is_dialogue: bool = False
    messages: tuple[Keys, ...] = ()
    other_system: bool = False
    broken_end: str = ""
    broken_answer: str = ""


@dataclass(frozen=True)
class RowFormat:
    """One entry of the table.

    name: what `training.check` calls the format. key: every row of the format has this key, with content.
    read: makes a row's conversation, whose last answer may be missing; raises ValueError naming the field at
    fault. write: makes the row of a conversation; raises ValueError for one that the format cannot hold.
    option: the name of the format for `--to` of `training.convert`. is_for: whether a row that has the key is
    of this format. yields_to: keys beside which the format's own is a key like any other.
    """

    name: str
    key: str
    read: Callable[[Keys], Reading]
    write: Callable[[Conversation], Row] | None = None
    option: str = ""
    is_for: Callable[[Keys], bool] = lambda keys: True
    yields_to: tuple[str, ...] = ()


def recognise(keys: Keys) -> RowFormat:
    """The format of a row. Raises ValueError unless the row has the keys of exactly one format."""
    filled = keys.filled()
    found = [entry for entry in FORMATS if entry.key in filled and entry.is_for(keys)]
    found = [entry for entry in found if not any(key in filled for key in entry.yields_to)]
    names = list(dict.fromkeys(entry.key for entry in found))
    if len(names) > 1:
        shown = " and ".join(f'"{name}"' for name in names)
        has_dialogue = any(isinstance(keys.peek(name), list) for name in names)
        remedy = "" if has_dialogue else f"; {NAME_THEM}"
        raise ValueError(f"a row is of one format, and this one has {shown}{remedy}")
    if not names:
        keys.rest()  # tells what the row is, where it is nothing to learn an answer from
        for name in NO_ANSWER:
            if name in keys:
                raise ValueError(f'"{name}": {NO_ANSWER[name]}')
        empty = [entry.key for entry in FORMATS if keys.has(entry.key)]
        raise ValueError(f'"{empty[0]}" is empty' if empty else _no_format(keys))
    return found[0]


def _no_format(keys: Keys) -> str:
    has = ", ".join(f'"{name}"' for name in keys.filled()) or "nothing"
    known = ", ".join(f'"{name}"' for name in dict.fromkeys(entry.key for entry in FORMATS))
    return f"a row needs one of {known}; this one has {has}; {NAME_THEM}"


def written_formats() -> dict[str, Callable[[Conversation], Row]]:
    """The writing function of each format that has one, by its name on the command line."""
    return {entry.option: entry.write for entry in FORMATS if entry.write}


def _pair(question: str, *answers: str) -> Callable[[Keys], Reading]:
    """The function that reads a row whose question is in the column `question`.

    answers: the columns that may hold its answer, each once; the first is named where there is none.
    """
    answers = tuple(dict.fromkeys(answers))

    def read(keys: Keys) -> Reading:
        human = nonblank_text(keys.take(question), f'"{question}"')
        # An input of white space is text as any other; [] and {} stand for none, as everywhere.
        extras = [name for name in EXTRAS if name in keys or isinstance(keys.peek(name), str)]
        extras = [name for name in extras if name != question and keys.peek(name) != ""]
        if len(extras) > 1:
            raise ValueError(f'the question is followed by both "{extras[0]}" and "{extras[1]}"')
        for name in extras:
            human += "\n" + as_text(keys.take(name), f'"{name}"')
        answer = _read_answer(keys, answers, f"; {NAME_THEM}")
        turns = (*_history(keys, "history"), Turn(human, answer.text))
        conversation = Conversation(turns, as_text(keys.take("system"), '"system"'))
        return Reading(conversation, answer.missing, broken_answer=answer.broken)

    return read


class _Answer(NamedTuple):
    """An answer in a column of its own: its text, or None; the error where it is missing; what is wrong."""

    text: str | None
    missing: str
    broken: str = ""


def _read_answer(keys: Keys, columns: Sequence[str], remedy: str = "") -> _Answer:
    """The answer in one of `columns`. remedy: what to do where several have content."""
    found = [name for name in columns if name in keys]
    column = next((name for name in (*found, *columns) if keys.has(name)), columns[0])
    value = keys.take(column)
    missing = f'"{column}" is missing' if value is None else f'"{column}" is empty'
    if len(found) > 1:
        shown = " and ".join(f'"{name}"' for name in found)
        return _Answer(None, missing, f"the row has several answers, {shown}{remedy}")
    if not found:
        return _Answer(None, missing)
    if isinstance(value, list) and any(isinstance(entry, str) for entry in value):
        return _Answer(
            None, missing, f'"{column}" is a list: a preference row, which has no one answer to learn'
        )
    try:
        return _Answer(nonblank_text(value, f'"{column}"'), missing)
    except ValueError as error:
        return _Answer(None, missing, str(error))


def _history(keys: Keys, name: str) -> list[Turn]:
    """The turns before a row's own: pairs of a question and its answer, which a table has as JSON."""
    value = keys.take(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):  # what is wrong is said below
            value = json.loads(value)
    if is_absent(value):
        return []
    if not isinstance(value, list):
        raise ValueError(f'"{name}" is {kind_of(value)}, not a list of pairs')
    turns = []
    for index, pair in enumerate(value):
        field = f'"{name}"[{index}]'
        if is_absent(pair):
            continue
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{field} is not a pair of a question and its answer")
        turns.append(Turn(nonblank_text(pair[0], f"{field}[0]"), nonblank_text(pair[1], f"{field}[1]")))
    return turns


def read_columns(keys: Keys, columns: Mapping[str, str]) -> Reading:
    """The row by the names that --columns gives to its columns. Raises ValueError naming the column."""
    asked = [columns[role] for role in ASKED if role in columns]
    if not any(map(keys.has, asked)):
        names, has = (", ".join(f'"{name}"' for name in of) for of in (asked, keys.filled()))
        raise ValueError(f"no column {names}; this one has {has or 'nothing'}")
    parts = [as_text(keys.take(columns[role]), f'"{columns[role]}"') for role in ASKED if role in columns]
    human = "\n".join(part for part in parts if part.strip())
    if not human:
        names = ", ".join(f'"{name}"' for name in asked)
        raise ValueError(f"{names}: empty")
    answer = _Answer(None, "--columns names no answer")
    if "answer" in columns:
        answer = _read_answer(keys, [columns["answer"]])
    turns = (*(_history(keys, columns["history"]) if "history" in columns else ()), Turn(human, answer.text))
    system = columns.get("system", "")
    conversation = Conversation(turns, as_text(keys.take(system), f'"{system}"'))
    return Reading(conversation, answer.missing, broken_answer=answer.broken)


def _tools(keys: Keys) -> tuple[str, ...]:
    """The declarations of the tools that a dialogue's row has."""
    return read_tools(keys.take("tools"), '"tools"')


def _dialogue(key: str, who: str, what: str) -> Callable[[Keys], Reading]:
    """The function that reads a row whose messages are the list in the column `key`."""

    def read(keys: Keys) -> Reading:
        messages = Messages(keys.take(key), f'"{key}"', who, what, tools=_tools(keys))
        return _read_dialogue(keys, messages, key)

    return read


def _read_dialogue(keys: Keys, messages: Messages, key: str) -> Reading:
    conversation = messages.conversation
    broken_answer = ""
    if conversation.is_prompt and any(name in keys for name in ANSWERS):
        if messages.broken_end:
            raise ValueError(messages.broken_end)
        answer = _read_answer(keys, ANSWERS)
        broken_answer = answer.broken
        *earlier, last = conversation.turns
        conversation = replace(conversation, turns=(*earlier, replace(last, yayi=answer.text)))
    has_column = "system" in keys
    system = as_text(keys.take("system"), '"system"')
    if not messages.has_system:
        conversation = replace(conversation, system=system or conversation.system)
    end = "a result" if conversation.turns[-1].tool_uses else "the human"
    return Reading(
        conversation,
        f'"{key}" ends with {end}: the last answer is missing',
        is_dialogue=True,
        messages=tuple(messages.keys),
        other_system=has_column and messages.has_system,
        broken_end=messages.broken_end,
        broken_answer=broken_answer,
    )


def _read_prompt_and_completion(keys: Keys) -> Reading:
    prompt, completion = keys.take("prompt"), keys.peek("completion")
    if isinstance(completion, list) and "completion" in keys:
        messages = [*prompt, *keys.take("completion")]
    else:  # the answer is a text, or there is none
        messages = prompt
    count = len(prompt)
    read = Messages(messages, '"prompt"', "role", "content", context_count=count, tools=_tools(keys))
    return _read_dialogue(keys, read, "prompt")


def _speaks_yayi(keys: Keys) -> bool:
    """Whether one of a row's messages, which may be anything, is from YaYi by this name."""
    messages = keys.peek("conversations")
    return isinstance(messages, list) and any(
        isinstance(message, dict) and message.get("from") == "yayi" for message in messages
    )


DIALOGUES = ("messages", "conversations")

# Where several formats have the same key, a row is of the first one that fits.
FORMATS = [
    RowFormat("instruction", "instruction", _pair("instruction", *ANSWERS), write_instruction, "instruction"),
    RowFormat(
        "YaYi multi-round",
        "conversations",
        _dialogue("conversations", "from", "value"),
        write_conversations,
        "multi-round",
        is_for=_speaks_yayi,
    ),
    RowFormat("ShareGPT", "conversations", _dialogue("conversations", "from", "value")),
    RowFormat(
        "messages", "messages", _dialogue("messages", "role", "content"), write_chat_messages, "messages"
    ),
    RowFormat(
        "prompt and completion messages",
        "prompt",
        _read_prompt_and_completion,
        is_for=lambda keys: isinstance(keys.peek("prompt"), list),
        yields_to=DIALOGUES,
    ),
    RowFormat(
        "prompt", "prompt", _pair("prompt", "completion", *ANSWERS), yields_to=("instruction", *DIALOGUES)
    ),
    RowFormat("question", "question", _pair("question", "answer", *ANSWERS), yields_to=DIALOGUES),
    RowFormat("query", "query", _pair("query", "response", *ANSWERS), yields_to=DIALOGUES),
    RowFormat(
        "input",
        "input",
        _pair("input", *ANSWERS),
        yields_to=("instruction", "prompt", "question", "query", *DIALOGUES),
    ),
    RowFormat(
        "content and summary",
        "content",
        _pair("content", "summary"),
        is_for=lambda keys: "summary" in keys,
        yields_to=("instruction", "prompt", "question", "query", "input", *DIALOGUES),
    ),
]
