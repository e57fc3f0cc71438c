"""The keys of a row and of its messages: what was read of them, what is harmless, and what must be refused.

Every key that has content is read by the row's format, or is one of HARMLESS, or is refused, or is counted as
not learnt. Nothing is left out without a word.
"""

import json
from typing import Any, NamedTuple

Row = dict[str, Any]

# Names of bookkeeping, which says where a row comes from and not what it teaches.
HARMLESS = frozenset(
    (
        *("id", "idx", "index", "uuid", "source", "dataset", "category", "domain", "topic", "task"),
        *("type", "lang", "language", "split", "url", "license", "author", "timestamp", "version", "name"),
        *("model", "time"),
    )
)

# Longer text is content, whatever its key is called.
LONGEST_HARMLESS = 200

# Keys whose content shows that the row has no one answer to learn, and why.
NO_ANSWER = {
    "chosen": "a preference row, which has no one answer to learn",
    "rejected": "a preference row, which has no one answer to learn",
}

# Keys whose content is part of the question, and that the recipe cannot read.
REFUSED = {
    **dict.fromkeys(("image", "images", "pixel_values"), "a row with pictures, which the model cannot see"),
    **dict.fromkeys(("video", "videos"), "a row with videos, which the model cannot see"),
    **dict.fromkeys(("audio", "audios"), "a row with sound, which the model cannot hear"),
    "tools": "a row with tools is a list of messages",
    "tool_calls": "tools are called by messages from the assistant",
    **dict.fromkeys(
        ("functions", "function_call"), "the older form of tool calls; write `tools` and `tool_calls`"
    ),
    "input_ids": "a row of token ids; the recipe wants its text",
}

# Keys by which a row says whether its answer is a good one, true, or a bad one, false.
VERDICTS = ("kto_tag", "label")

# The `source` of rows that people wrote while they talked to a model: the answers that they rated or mended.
FEEDBACK = "feedback"

# Keys by which a message, or a row, says whether its answer is learnt.
LEARN = ("weight", "loss", "train")


def kind_of(value: Any) -> str:
    """What JSON calls the type of `value`."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")


def is_absent(value: Any) -> bool:
    """Whether a key with this value counts as absent: null, blank text, {}, [], and lists of nothing else."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, list):
        return all(map(is_absent, value))
    return value is None or value == {}


def is_bookkeeping(name: str, value: Any) -> bool:
    """Whether a key with this value is harmless: one of HARMLESS, with a short text or number, or praise."""
    if name in VERDICTS and value is True:
        return True
    return name in HARMLESS and not isinstance(value, list | dict) and len(str(value)) <= LONGEST_HARMLESS


class Rest(NamedTuple):
    """What was not read: keys that are not learnt, harmless ones, and why the answer must not be learnt."""

    not_learnt: list[str]
    harmless: list[str]
    refusal: str


class Keys:
    """The keys of a row, or of one of its messages, that `take` has not yet given to its format."""

    def __init__(self, by_name: Row) -> None:
        self._by_name = by_name
        self._content = {name: value for name, value in by_name.items() if not is_absent(value)}
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether the key has content."""
        return name in self._content

    def has(self, name: str) -> bool:
        """Whether the key is there, with content or without."""
        return name in self._by_name

    def take(self, name: str) -> Any:
        """The value of a key, which counts as read from now on; None where there is none."""
        self._taken.add(name)
        return self._by_name.get(name)

    def peek(self, name: str) -> Any:
        """The value of a key, which does not count as read."""
        return self._by_name.get(name)

    def filled(self) -> list[str]:
        """The names of all keys that have content, in the row's order."""
        return list(self._content)

    def rest(self) -> Rest:
        """What becomes of the keys that have content and were not read.

        Raises ValueError for a key without whose content the row has another meaning.
        """
        rest = Rest([], [], "")
        for name, value in self._content.items():
            if name in self._taken:
                continue
            if name in REFUSED and value != "[]":  # the text "[]" is how some sets write that there is none
                raise ValueError(f'"{name}": {REFUSED[name]}')
            rest = rest._replace(refusal=rest.refusal or _why_not_learnt(name, value))
            (rest.harmless if is_bookkeeping(name, value) else rest.not_learnt).append(name)
        return rest


def _why_not_learnt(name: str, value: Any) -> str:
    """Why a row with this key has no answer to learn, or "" where the key does not say so."""
    if name in NO_ANSWER:
        return f'"{name}": {NO_ANSWER[name]}'
    if name in VERDICTS and value is False:
        return f'"{name}" is false: the row says that its answer is a bad one'
    if name in LEARN and value == 0:
        return f'"{name}" is {json.dumps(value)}: the row says that its answer is not to be learnt'
    return ""


def as_text(value: Any, field: str) -> str:
    """`value` as text that can be written in UTF-8; "" for null, {}, [] and lists of nothing else. A list of
    text parts is joined.

    Raises ValueError, which names the field, for anything else.
    """
    if not isinstance(value, str) and is_absent(value):
        return ""
    if isinstance(value, list) and all(map(_is_part, value)):
        return "".join(_text_of(part, f"{field}[…]") for part in value)
    if not isinstance(value, str):
        raise ValueError(f"{field} is {kind_of(value)}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{field} has half of a surrogate pair, which is no character") from None
    return value


def _is_part(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    if value["type"] != "text":
        raise ValueError(f'a part of the content is of type "{value["type"]}", not text')
    return True


def _text_of(part: Row, field: str) -> str:
    if part.get("text") is None:
        raise ValueError(f'{field}."text" is missing')
    for name, value in part.items():
        if name not in ("type", "text") and not is_absent(value):
            raise ValueError(f'{field} has "{name}" beside its text, which the recipe does not know')
    return as_text(part["text"], f'{field}."text"')


def nonblank_text(value: Any, field: str) -> str:
    """Text that has something in it besides white space. Raises ValueError, which names the field."""
    if value is None:
        raise ValueError(f"{field} is missing")
    text = as_text(value, field)
    if not text or text.isspace():
        raise ValueError(f"{field} is empty")
    return text
