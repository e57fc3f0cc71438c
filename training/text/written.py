"""A conversation as a row of each format that `training.convert` writes, and as messages for a server."""

import json
from itertools import count
from typing import Any

from training.text.calls import read_call
from training.text.keys import Row
from training.text.turns import Conversation, ToolUse, Turn


def write_instruction(conversation: Conversation) -> Row:
    """An instruction row. Raises ValueError for a conversation that has more than one can hold."""
    *earlier, turn = conversation.turns
    if conversation.has_tools:
        raise ValueError("a dialogue with tools has no instruction row")
    if earlier:
        raise ValueError("a dialogue of several turns has no instruction row")
    if turn.is_context:
        raise ValueError("an answer that is not learnt has no instruction row")
    row = {"instruction": turn.human, "input": ""}
    if turn.yayi is not None:
        row["output"] = turn.yayi
    return {**row, "system": conversation.system} if conversation.system else row


def write_conversations(conversation: Conversation) -> Row:
    """A row of YaYi's multi-round format; tools are in it as ShareGPT has them.

    Raises ValueError where a text stands before a call, for which there is no place.
    """
    messages: list[Row] = []
    for turn in conversation.turns:
        messages.append({"from": "human", "value": turn.human})
        for use in turn.tool_uses:
            if use.text:
                raise ValueError("a text before a call has no multi-round row")
            calls = [read_call(call)._asdict() for call in use.calls]
            value = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
            messages.append({"from": "function_call", "value": value} | _weight(use))
            messages += [{"from": "observation", "value": result} for result in use.results]
        if turn.yayi is not None:
            messages.append({"from": "yayi", "value": turn.yayi} | _weight(turn))
    row: Row = {"system": conversation.system, "conversations": messages}
    if conversation.tools:
        row["tools"] = json.dumps([json.loads(tool) for tool in conversation.tools], ensure_ascii=False)
    return row


def write_chat_messages(conversation: Conversation) -> Row:
    """A row of chat messages, as OpenAI has them."""
    row: Row = {"messages": chat_messages(conversation)}
    if conversation.tools:
        row["tools"] = tool_objects(conversation)
    return row


def chat_messages(conversation: Conversation) -> list[Row]:
    """The messages of a conversation as OpenAI's API takes them; an answer that is context has a weight of 0.

    Raises ValueError for a call that is no call, which a model may have said.
    """
    messages: list[Row] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    ids = count(1)
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.human})
        for use in turn.tool_uses:
            calls = [_tool_call(call, f"call_{next(ids)}") for call in use.calls]
            messages.append({"role": "assistant", "content": use.text, "tool_calls": calls} | _weight(use))
            for call, result in zip(calls, use.results, strict=False):  # there may be no results
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if turn.yayi is not None:
            messages.append({"role": "assistant", "content": turn.yayi} | _weight(turn))
    return messages


def tool_objects(conversation: Conversation) -> list[Any]:
    """The tools of a conversation as OpenAI's API and `apply_chat_template` take them."""
    return [{"type": "function", "function": json.loads(tool)} for tool in conversation.tools]


def _tool_call(call: str, call_id: str) -> Row:
    name, arguments = read_call(call)
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def _weight(answer: Turn | ToolUse) -> dict[str, Any]:
    return {"weight": 0} if answer.is_context else {}
