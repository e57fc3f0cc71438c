"""Conversation and Turn: what every known row format becomes, at the border.

{"instruction", "input", "output", "system"}                        one turn
{"system", "conversations": [{"from": "human"|"yayi", "value"}]}    YaYi multi-round
{"conversations": [{"from": "system"|"human"|"gpt", "value"}]}      ShareGPT
{"messages": [{"role": "system"|"user"|"assistant", "content"}]}    chat messages
"""

import re
from dataclasses import dataclass
from typing import Any

FORMAT_KEYS = ("instruction", "conversations", "messages")

# Who speaks, by the names that the formats use.
SPEAKERS = {
    "system": "system",
    "human": "human",
    "user": "human",
    "yayi": "yayi",
    "gpt": "yayi",
    "assistant": "yayi",
}


# How the original's data name the domain of an instruction.
DOMAIN_PREFIX = re.compile(r"\s*【([^【】\n]{1,30})】")


@dataclass(frozen=True)
class Turn:
    """What the human says, and what YaYi answers; None where the answer is still to come."""

    human: str
    yayi: str | None = None


@dataclass(frozen=True)
class Conversation:
    """One or more turns. Only the last may lack its answer; an empty system text means the intro."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def is_prompt(self) -> bool:
        return self.turns[-1].yayi is None


def domain_of(conversation: Conversation) -> str:
    """What the first instruction has in 【】 before it; "" for nothing."""
    prefix = DOMAIN_PREFIX.match(conversation.turns[0].human)
    return prefix[1] if prefix else ""


def format_of(row: dict[str, Any]) -> str:
    """What the format of a row that `from_row` takes is called."""
    if row.get("instruction") is not None:
        return "instruction"
    if row.get("messages") is not None:
        return "messages"
    speakers = {message["from"] for message in row["conversations"]}
    return "YaYi multi-round" if "yayi" in speakers else "ShareGPT"


def other_keys(row: dict[str, Any]) -> set[str]:
    """What a row that `from_row` takes holds besides the conversation: its keys, and its messages' keys."""
    known = {*FORMAT_KEYS, "input", "output", "system"}
    found = {f'"{key}"' for key in row.keys() - known}
    for key in ("conversations", "messages"):
        for message in row.get(key) or ():
            found |= {
                f'"{key}"[…]."{name}"' for name in message.keys() - {"from", "value", "role", "content"}
            }
    return found


def from_row(row: dict[str, Any], *, answered: bool = False) -> Conversation:
    """The conversation of a row in any of the formats above. A key whose value is null counts as absent.

    The last turn may lack its answer, which makes the row a prompt, unless `answered` asks for it.
    Raises ValueError naming the field at fault.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is {_kind(row)}, not an object")
    found = [key for key in FORMAT_KEYS if row.get(key) is not None]
    if len(found) != 1:
        has = " and ".join(f'"{key}"' for key in found) or "none"
        raise ValueError(
            f'a row needs one of "instruction", "conversations" and "messages"; this one has {has}'
        )
    if found == ["instruction"]:
        return _from_instruction(row, answered)
    if found == ["conversations"]:
        return _from_messages(row, "conversations", "from", "value", answered)
    return _from_messages(row, "messages", "role", "content", answered)


def _from_instruction(row: dict[str, Any], answered: bool) -> Conversation:
    human = _spoken(row["instruction"], '"instruction"')
    extra = _text(row.get("input"), '"input"')
    if extra:
        human = f"{human}\n{extra}"
    output = row.get("output")
    if output is None:
        if answered:
            raise ValueError('"output" is missing')
        yayi = None
    else:
        yayi = _spoken(output, '"output"')
    return Conversation((Turn(human, yayi),), _text(row.get("system"), '"system"'))


def _from_messages(row: dict[str, Any], key: str, who: str, what: str, answered: bool) -> Conversation:
    messages = row[key]
    if not isinstance(messages, list):
        raise ValueError(f'"{key}" is {_kind(messages)}, not a list')
    system = _text(row.get("system"), '"system"')
    turns: list[Turn] = []
    expected = "human"
    for index, message in enumerate(messages):
        field = f'"{key}"[{index}]'
        if not isinstance(message, dict):
            raise ValueError(f"{field} is {_kind(message)}, not an object")
        name = message.get(who)
        speaker = SPEAKERS.get(name) if isinstance(name, str) else None
        if speaker is None:
            shown = repr(name) if len(repr(name)) < 30 else _kind(name)
            raise ValueError(f'{field}."{who}" is {shown}; known are {", ".join(SPEAKERS)}')
        field = f'{field}."{what}"'
        if speaker == "system":
            if index > 0 or system:
                raise ValueError(f"{field}: a second system text; there is one, and it comes first")
            system = _text(message.get(what), field)
            continue
        if speaker != expected:
            raise ValueError(f"{field} is from {name!r}: a dialogue starts with the human and alternates")
        text = _spoken(message.get(what), field)
        if speaker == "human":
            turns.append(Turn(text))
        else:
            turns[-1] = Turn(turns[-1].human, text)
        expected = "yayi" if speaker == "human" else "human"
    if not turns:
        raise ValueError(f'"{key}" has no message from the human')
    if answered and turns[-1].yayi is None:
        raise ValueError(f'"{key}" ends with the human: the last answer is missing')
    return Conversation(tuple(turns), system)


def _text(value: Any, field: str) -> str:
    """`value` as text that can be written in UTF-8; absent is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field} is {_kind(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{field} has half of a surrogate pair, which is no character") from None
    return value


def _spoken(value: Any, field: str) -> str:
    """Text that has something in it besides white space."""
    if value is None:
        raise ValueError(f"{field} is missing")
    text = _text(value, field)
    if not text.strip():
        raise ValueError(f"{field} is empty")
    return text


def _kind(value: Any) -> str:
    """What JSON calls the type of `value`."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")
