"""A dialogue with a model as a row to train on: as a row can have it, which is stricter than a model is."""

from collections.abc import Iterator
from dataclasses import replace

from training.text.calls import declared_name, read_call
from training.text.keys import Row
from training.text.turns import Conversation, ToolUse, Turn
from training.text.written import write_chat_messages


def messages_row(conversation: Conversation) -> tuple[Row, int]:
    """(the row of chat messages, how many calls are not in it).

    No row can hold what a model took for a call and is none, or calls a tool that was not offered. Such calls
    are left out with the error that came back.
    """
    declared = set(map(declared_name, conversation.tools))
    turns = tuple(replace(turn, tool_uses=tuple(_sound(turn, declared))) for turn in conversation.turns)
    sound = replace(conversation, turns=turns)
    return write_chat_messages(sound), _count_calls(conversation) - _count_calls(sound)


def _sound(turn: Turn, declared: set[str]) -> Iterator[ToolUse]:
    for use in turn.tool_uses:
        pairs = zip(use.calls, use.results, strict=True)
        kept = [(call, result) for call, result in pairs if _is_sound(call, declared)]
        if kept:
            calls, results = zip(*kept, strict=True)
            yield replace(use, calls=calls, results=results)


def _is_sound(text: str, declared: set[str]) -> bool:
    try:
        return read_call(text).name in declared
    except ValueError:
        return False


def _count_calls(conversation: Conversation) -> int:
    return sum(len(use.calls) for turn in conversation.turns for use in turn.tool_uses)
