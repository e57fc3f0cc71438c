"""What rows say of tools, as OpenAI and ShareGPT write it -> the texts of `calls.py`.

"tools": [{"type": "function", "function": {"name": "weather", ...}}]          or the inner objects, or JSON
"tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {...}}}]          the same, or JSON
{"from": "function_call", "value": "{\\"name\\": \\"weather\\", \\"arguments\\": {...}}"}     one, or a list
"""

import json
from collections.abc import Sequence
from typing import Any

from training.text.calls import call_text, declaration, declared_name, json_text, result_text
from training.text.keys import is_absent, kind_of
from training.text.turns import ToolUse


def read_tools(value: Any, field: str) -> tuple[str, ...]:
    """The declarations under the key "tools" of a row. Raises ValueError naming the one at fault."""
    tools = _parsed(value, field)
    if is_absent(tools):
        return ()
    if not isinstance(tools, list):
        raise ValueError(f"{field} is {kind_of(tools)}, not a list of tools")
    return tuple(_declaration(tool, f"{field}[{index}]") for index, tool in enumerate(tools))


def _declaration(tool: Any, field: str) -> str:
    if not isinstance(tool, dict):
        raise ValueError(f"{field} is {kind_of(tool)}, not an object")
    try:
        return declaration(tool)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


class OpenCalls:
    """The calls of one answer, which wait for their results.

    calls: their texts. results: what the messages after them say, in the order of the messages.
    """

    def __init__(
        self, value: Any, field: str, declared: Sequence[str], text: str = "", is_context: bool = False
    ) -> None:
        """value: one call or a list of them, or their JSON. declared: the row's tools. text: what is said
        before the calls. Raises ValueError naming the call at fault.
        """
        calls = _parsed(value, field)
        if isinstance(calls, dict):
            calls = [calls]
        if not isinstance(calls, list) or is_absent(calls):
            raise ValueError(f"{field} is {kind_of(calls)}, not a list of calls")
        names = set(map(declared_name, declared))
        self._field, self._text, self._is_context = field, text, is_context
        self._ids: list[Any] = []
        self._result_ids: list[Any] = []
        self.calls: list[str] = []
        self.results: list[str] = []
        for index, call in enumerate(calls):
            self._read_call(call, f"{field}[{index}]", names)

    def _read_call(self, call: Any, field: str, declared: set[str]) -> None:
        if not isinstance(call, dict):
            raise ValueError(f"{field} is {kind_of(call)}, not an object")
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or is_absent(name):
            raise ValueError(f"{field} names no tool")
        if name not in declared:
            raise ValueError(f'{field} calls {name!r}, which "tools" does not declare')
        arguments = _parsed(function.get("arguments"), f'{field}."arguments"')
        if is_absent(arguments):
            arguments = {}
        if not isinstance(arguments, dict):
            raise ValueError(f'{field}."arguments" is {kind_of(arguments)}, not a JSON object')
        try:
            self.calls.append(call_text(name, arguments))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        self._ids.append(call.get("id"))

    def add_result(self, text: str, call_id: Any, field: str) -> None:
        """Note the next result. call_id: the call that it is of, where the row says so."""
        if len(self.results) == len(self.calls):
            raise ValueError(f"{field}: a result, and no call waits for one")
        self.results.append(text)
        self._result_ids.append(call_id)

    def closed(self) -> ToolUse:
        """The calls with their results. Raises ValueError where a call has none."""
        results = self._results_of_list() or self.results
        if len(results) != len(self.calls):
            raise ValueError(
                f"{self._field}: a call without its result ({len(self.calls)} calls, {len(results)} results)"
            )
        if results and all(map(_is_id, self._ids)) and all(map(_is_id, self._result_ids)):
            by_id = dict(zip(map(str, self._result_ids), results, strict=False))
            if by_id.keys() != set(map(str, self._ids)) or len(by_id) != len(self.calls):
                raise ValueError(f'{self._field}: the results have other values of "tool_call_id"')
            results = [by_id[str(call_id)] for call_id in self._ids]
        return ToolUse(tuple(self.calls), tuple(results), self._text, self._is_context)

    def left_open(self) -> ToolUse:
        """The calls at the end of a conversation: their results may be missing altogether."""
        return self.closed() if self.results else ToolUse(tuple(self.calls), (), self._text, self._is_context)

    def _results_of_list(self) -> list[str]:
        """The results where one message has those of several calls as a JSON list, as ShareGPT must."""
        if len(self.results) != 1 or len(self.calls) == 1:
            return []
        try:
            listed = json.loads(self.results[0])
        except (ValueError, RecursionError):
            return []
        if not isinstance(listed, list) or len(listed) != len(self.calls):
            return []
        json_text(listed)  # raises ValueError for what a text cannot hold
        return [result_text(each) for each in listed]


def _is_id(value: Any) -> bool:
    return value is not None and value != ""


def _parsed(value: Any, field: str) -> Any:
    """A value that a row may also have as JSON text."""
    if not isinstance(value, str) or is_absent(value):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{field} is not JSON ({error.msg} at column {error.colno})") from None
    except ValueError:  # Python's limit for whole numbers
        raise ValueError(f"{field} has a number of too many digits") from None
