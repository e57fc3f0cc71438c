"""The table of row formats: how a row of each is recognised, read and written.

{"instruction", "input", "output", "system"}                        one turn
{"system", "conversations": [{"from": "human"|"yayi", "value"}]}    YaYi multi-round
{"conversations": [{"from": "system"|"human"|"gpt", "value"}]}      ShareGPT
{"messages": [{"role": "system"|"user"|"assistant", "content"}]}    chat messages
{"prompt", "system"}                                                a question, where no answer is wanted

A new format is a function that reads a row of it, one that writes it if `training.convert` is to have it in
`--to`, and one entry in FORMATS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.text.turns import Conversation, Turn

Row = dict[str, Any]

# Who speaks, by the names that the formats use.
SPEAKERS = {
    "system": "system",
    "human": "human",
    "user": "human",
    "yayi": "yayi",
    "gpt": "yayi",
    "assistant": "yayi",
}


@dataclass(frozen=True)
class RowFormat:
    """One entry of the table.

    name: what `training.check` calls the format. key: every row of the format has this key, and not null.
    read: makes a row's conversation, whose last answer may be missing; raises ValueError naming the field at
    fault. fields: the other keys that `read` looks at. message_fields: those of each message, if `key` holds
    a list. write: makes the row of a conversation; raises ValueError for one that the format cannot hold.
    option: the name of the format for `--to` of `training.convert`. no_answer: the error for a row that lacks
    its last answer. speaker: where several formats share a key, a row is of this one only if it has a message
    from this speaker. is_prompt: whether the format has no place for an answer; training cannot use it.
    """

    name: str
    key: str
    read: Callable[[Row], Conversation]
    fields: tuple[str, ...] = ()
    message_fields: tuple[str, ...] = ()
    write: Callable[[Conversation], Row] | None = None
    option: str = ""
    no_answer: str = "the answer is missing"
    speaker: str | None = None
    is_prompt: bool = False


def recognise(row: Row, *, prompts: bool = False) -> RowFormat:
    """The format of a row; with `prompts`, it may be one that has no place for an answer.

    A key whose value is null counts as absent. Raises ValueError unless the row has exactly one format's key.
    """
    found = [entry for entry in FORMATS if not entry.is_prompt and row.get(entry.key) is not None]
    if prompts and not found:
        found = [entry for entry in FORMATS if entry.is_prompt and entry.key in row]
    if len({entry.key for entry in found}) != 1:
        *others, last = (f'"{key}"' for key in answered_keys())
        has = " and ".join(f'"{key}"' for key in dict.fromkeys(entry.key for entry in found)) or "none"
        raise ValueError(f"a row needs one of {', '.join(others)} and {last}; this one has {has}")
    return next(entry for entry in found if entry.speaker is None or _speaks(row[entry.key], entry))


def answered_keys() -> list[str]:
    """The keys of the formats that training reads, each once."""
    return list(dict.fromkeys(entry.key for entry in FORMATS if not entry.is_prompt))


def written_formats() -> dict[str, Callable[[Conversation], Row]]:
    """The writing function of each format that has one, by its name on the command line."""
    return {entry.option: entry.write for entry in FORMATS if entry.write}


def kind_of(value: Any) -> str:
    """What JSON calls the type of `value`."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")


def _read_instruction(row: Row) -> Conversation:
    human = _nonblank_text(row["instruction"], '"instruction"')
    extra = _text(row.get("input"), '"input"')
    if extra:
        human = f"{human}\n{extra}"
    output = row.get("output")
    yayi = None if output is None else _nonblank_text(output, '"output"')
    return Conversation((Turn(human, yayi),), _text(row.get("system"), '"system"'))


def _write_instruction(conversation: Conversation) -> Row:
    turn, *later = conversation.turns
    if later:
        raise ValueError("a dialogue of several turns has no instruction row")
    row = {"instruction": turn.human, "input": ""}
    if turn.yayi is not None:
        row["output"] = turn.yayi
    return {**row, "system": conversation.system} if conversation.system else row


def _read_conversations(row: Row) -> Conversation:
    return _read_messages(row, "conversations", "from", "value")


def _write_conversations(conversation: Conversation) -> Row:
    messages = _messages(conversation, "from", "human", "yayi", "value")
    return {"system": conversation.system, "conversations": messages}


def _read_chat_messages(row: Row) -> Conversation:
    return _read_messages(row, "messages", "role", "content")


def _write_chat_messages(conversation: Conversation) -> Row:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return {"messages": system + _messages(conversation, "role", "user", "assistant", "content")}


def _read_prompt(row: Row) -> Conversation:
    prompt, system = row["prompt"], row.get("system")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError('"prompt" is empty, or not text')
    if not isinstance(system, str | None):
        raise ValueError('"system" is not text')
    return Conversation((Turn(prompt),), system or "")


def _read_messages(row: Row, key: str, who: str, what: str) -> Conversation:
    messages = row[key]
    if not isinstance(messages, list):
        raise ValueError(f'"{key}" is {kind_of(messages)}, not a list')
    system = _text(row.get("system"), '"system"')
    turns: list[Turn] = []
    expected = "human"
    for index, message in enumerate(messages):
        field = f'"{key}"[{index}]'
        if not isinstance(message, dict):
            raise ValueError(f"{field} is {kind_of(message)}, not an object")
        name = message.get(who)
        speaker = SPEAKERS.get(name) if isinstance(name, str) else None
        if speaker is None:
            shown = repr(name) if len(repr(name)) < 30 else kind_of(name)
            raise ValueError(f'{field}."{who}" is {shown}; known are {", ".join(SPEAKERS)}')
        field = f'{field}."{what}"'
        if speaker == "system":
            if index > 0 or system:
                raise ValueError(f"{field}: a second system text; there is one, and it comes first")
            system = _text(message.get(what), field)
            continue
        if speaker != expected:
            raise ValueError(f"{field} is from {name!r}: a dialogue starts with the human and alternates")
        text = _nonblank_text(message.get(what), field)
        if speaker == "human":
            turns.append(Turn(text))
        else:
            turns[-1] = Turn(turns[-1].human, text)
        expected = "yayi" if speaker == "human" else "human"
    if not turns:
        raise ValueError(f'"{key}" has no message from the human')
    return Conversation(tuple(turns), system)


def _messages(conversation: Conversation, who: str, human: str, yayi: str, what: str) -> list[dict[str, str]]:
    messages = []
    for turn in conversation.turns:
        messages.append({who: human, what: turn.human})
        if turn.yayi is not None:
            messages.append({who: yayi, what: turn.yayi})
    return messages


def _speaks(messages: Any, entry: RowFormat) -> bool:
    """Whether one of a row's messages, which may be anything, is from the speaker of a format."""
    who = entry.message_fields[0]
    return isinstance(messages, list) and any(
        isinstance(message, dict) and message.get(who) == entry.speaker for message in messages
    )


def _text(value: Any, field: str) -> str:
    """`value` as text that can be written in UTF-8; "" for None."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field} is {kind_of(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{field} has half of a surrogate pair, which is no character") from None
    return value


def _nonblank_text(value: Any, field: str) -> str:
    """Text that has something in it besides white space."""
    if value is None:
        raise ValueError(f"{field} is missing")
    text = _text(value, field)
    if not text.strip():
        raise ValueError(f"{field} is empty")
    return text


# Where several formats have the same key, a row is of the first one that fits.
FORMATS = [
    RowFormat(
        name="instruction",
        key="instruction",
        read=_read_instruction,
        fields=("input", "output", "system"),
        write=_write_instruction,
        option="instruction",
        no_answer='"output" is missing',
    ),
    RowFormat(
        name="YaYi multi-round",
        key="conversations",
        read=_read_conversations,
        fields=("system",),
        message_fields=("from", "value"),
        write=_write_conversations,
        option="multi-round",
        no_answer='"conversations" ends with the human: the last answer is missing',
        speaker="yayi",
    ),
    RowFormat(
        name="ShareGPT",
        key="conversations",
        read=_read_conversations,
        fields=("system",),
        message_fields=("from", "value"),
        no_answer='"conversations" ends with the human: the last answer is missing',
    ),
    RowFormat(
        name="messages",
        key="messages",
        read=_read_chat_messages,
        fields=("system",),
        message_fields=("role", "content"),
        write=_write_chat_messages,
        option="messages",
        no_answer='"messages" ends with the human: the last answer is missing',
    ),
    RowFormat(name="prompt", key="prompt", read=_read_prompt, fields=("system",), is_prompt=True),
]
