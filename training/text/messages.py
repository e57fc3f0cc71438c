"""A list of messages -> a conversation: who speaks, by the names in use, and what each message says."""

from collections.abc import Sequence
from typing import Any

from training.text.keys import LEARN, Keys, as_text, is_absent, kind_of, nonblank_text
from training.text.tool_messages import OpenCalls
from training.text.turns import Conversation, ToolUse, Turn

# Who speaks, by the names that data sets use, in small letters.
SPEAKERS = {
    "system": "system",
    "developer": "system",
    "human": "human",
    "user": "human",
    "yayi": "yayi",
    "gpt": "yayi",
    "assistant": "yayi",
    "chatgpt": "yayi",
    "bot": "yayi",
    "model": "yayi",
    "function_call": "calls",
    "tool_call": "calls",
    "tool": "result",
    "function": "result",
    "observation": "result",
    "tool_response": "result",
}

# The keys of a message: who speaks, and what is said.
WHO, WHAT = ("from", "role"), ("value", "content")


class Messages:
    """The messages of a row, read in order.

    conversation: what they say. keys: those of each message that has more than who speaks and what is said,
    for what was not read of them. has_system: whether one of them is a system message with content.
    broken_end: what is wrong where the human speaks twice after the last answer, or ""; the conversation then
    lacks what follows the first of these messages.
    """

    def __init__(
        self,
        messages: Any,
        field: str,
        who: str,
        what: str,
        context_count: int = 0,
        tools: tuple[str, ...] = (),
    ) -> None:
        """who, what: the names of a message's keys in this format; those of the other are read as well.

        context_count: how many messages, from the first, are context: no answer among them is learnt. tools:
        the declarations of the row's tools.
        """
        if not isinstance(messages, list):
            raise ValueError(f"{field} is {kind_of(messages)}, not a list")
        self.keys: list[Keys] = []
        self.has_system = False
        self.broken_end = ""
        self._names = who, what
        self._context_count = context_count
        self._system = ""
        self._turns: list[Turn] = []
        self._asked: str | None = None  # what the human said last, until it is answered
        self._tools = tools
        self._tool_uses: list[ToolUse] = []  # since then
        self._open_calls: OpenCalls | None = None
        for index, message in enumerate(messages):
            self._read(message, index, f"{field}[{index}]")
        if self._asked is not None:
            if self._open_calls:
                self._tool_uses.append(self._open_calls.left_open())
            self._turns.append(Turn(self._asked, tool_uses=tuple(self._tool_uses)))
        if not self._turns:
            raise ValueError(f"{field} has no message from the human")
        self.conversation = Conversation(tuple(self._turns), self._system, tools)

    def _read(self, message: Any, index: int, field: str) -> None:
        if not isinstance(message, dict):
            raise ValueError(f"{field} is {kind_of(message)}, not an object")
        who, what = self._names
        is_context = index < self._context_count
        calls = call_id = None
        if message.keys() == {who, what}:  # as most are; the other way takes twice as long
            name, value = message[who], message[what]
            speaker = _speaker(name, who, field)
        else:
            keys = Keys(message)
            self.keys.append(keys)
            who, what = _one_of(keys, WHO, who, field), _one_of(keys, WHAT, what, field)
            name, value = keys.take(who), keys.take(what)
            speaker = _speaker(name, who, field)
            if speaker == "yayi" and "tool_calls" in keys:
                speaker, calls = "calls", keys.take("tool_calls")
            if speaker == "result":
                call_id = keys.take("tool_call_id")
            is_context |= _is_context(keys, field)
        text_field = f'{field}."{what}"'
        if speaker == "result":
            if self._open_calls is None:
                raise ValueError(f"{text_field} is from {name!r}: a result, and no call waits for one")
            self._open_calls.add_result(as_text(value, text_field), call_id, text_field)
            return
        if self._open_calls:
            self._tool_uses.append(self._open_calls.closed())
            self._open_calls = None
        if speaker == "system":
            if index > 0:
                problem = "a second system text" if self.has_system else "a system text after the start"
                raise ValueError(f"{text_field}: {problem}; there is one, and it comes first")
            self._system = as_text(value, text_field)
            self.has_system = not is_absent(self._system)
        elif speaker == "human":
            self._ask(nonblank_text(value, text_field), _out_of_turn(text_field, name))
        elif self.broken_end:
            raise ValueError(self.broken_end)
        elif self._asked is None:
            raise ValueError(_out_of_turn(text_field, name))
        elif speaker == "calls" and calls is None:
            self._open_calls = OpenCalls(value, text_field, self._tools, is_context=is_context)
        elif speaker == "calls":
            text, calls_field = as_text(value, text_field), f'{field}."tool_calls"'
            self._open_calls = OpenCalls(calls, calls_field, self._tools, text, is_context)
        else:
            answer = nonblank_text(value, text_field)
            self._turns.append(Turn(self._asked, answer, is_context, tuple(self._tool_uses)))
            self._asked, self._tool_uses = None, []

    def _ask(self, text: str, problem: str) -> None:
        """Note what the human says. problem: what is wrong where the last message is not answered."""
        if self._asked is None:
            self._asked = text
            return
        self.broken_end = self.broken_end or problem
        if not self._turns:
            raise ValueError(self.broken_end)


def _out_of_turn(field: str, name: str) -> str:
    return f"{field} is from {name!r}: a dialogue starts with the human and alternates"


def _speaker(name: Any, who: str, field: str) -> str:
    """Who speaks in a message, as in SPEAKERS, by the name under its key `who`."""
    known = name if isinstance(name, str) else ""
    if known not in SPEAKERS:
        known = known.strip().lower()
    if known not in SPEAKERS:
        shown = f'"{name}"' if isinstance(name, str) and len(name) < 30 else kind_of(name)
        raise ValueError(f'{field}."{who}" is {shown}; known are {", ".join(SPEAKERS)}')
    return SPEAKERS[known]


def _one_of(keys: Keys, names: Sequence[str], own: str, field: str) -> str:
    """Which of these keys has content; if none has, the one that is there, or the format's own."""
    found = [name for name in names if name in keys]
    if len(found) > 1 and keys.peek(found[0]) != keys.peek(found[1]):
        raise ValueError(f'{field} has both "{found[0]}" and "{found[1]}", which differ')
    for name in found:
        keys.take(name)
    return found[0] if found else next((name for name in (own, *names) if keys.has(name)), own)


def _is_context(keys: Keys, field: str) -> bool:
    """Whether a message says that its answer is not to be learnt, by a weight of 0 or a loss of false."""
    flags = set()
    for name in LEARN:
        value = keys.take(name)
        if is_absent(value):
            continue
        if value not in (0, 1):
            raise ValueError(
                f'{field}."{name}" is {value!r}; 1 or true says that the answer is learnt, 0 or false not'
            )
        flags.add(bool(value))
    if len(flags) > 1:
        raise ValueError(f"{field}: {', '.join(LEARN)} contradict each other")
    return flags == {False}
