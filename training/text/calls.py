"""Tools as text: the declaration of a tool, a call of it, and how calls are found in what a model says.

    {"name": "exchange_rate", "description": "...", "parameters": {...}}           a declaration
    {"name": "exchange_rate", "arguments": {"currency": "欧元"}}                   a call

    我查一下。<tool_call>                                                           an answer with a call
    {"name": "exchange_rate", "arguments": {"currency": "欧元"}}
    </tool_call>

This is the form that servers know as Hermes. In all of this JSON, "</" is written "<\\/", so that no argument
can end a call.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

DECLARATIONS_OPENING, DECLARATIONS_CLOSING = "<tools>\n", "\n</tools>"
CALL_OPENING, CALL_CLOSING = "<tool_call>\n", "\n</tool_call>"
BETWEEN_CALLS = "\n"

# A call in what a model says. The last may lack its end, where the answer was cut off.
SAID_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class Call(NamedTuple):
    """A tool that is called, and the arguments of the call, by name."""

    name: str
    arguments: dict[str, Any]


def json_text(value: Any) -> str:
    """`value` as the one line of JSON that stands in a conversation's text.

    Raises ValueError for a number that JSON does not have, and for half of a surrogate pair.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    return text.replace("</", "<\\/")


def declaration(tool: Mapping[str, Any]) -> str:
    """The text of a tool as OpenAI declares it: {"type": "function", "function": {"name", ...}}, or the inner
    object alone. What it returns, which transformers' `get_json_schema` may add, is left out.

    Raises ValueError, which says what is wrong, for anything else.
    """
    kind = tool.get("type", "function")
    function = tool.get("function", tool)
    if kind != "function" and function is not tool:
        raise ValueError(f"of type {kind!r}, not function")
    if not isinstance(function, Mapping):
        raise ValueError('"function" is not an object')
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("a tool without a name")
    return json_text({key: value for key, value in function.items() if key != "return"})


def declared_name(declared: str) -> str:
    """The name of the tool that a `declaration` is of."""
    return json.loads(declared)["name"]


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call. Raises ValueError as `json_text` does."""
    return json_text({"name": name, "arguments": arguments})


def read_call(text: str) -> Call:
    """The call that `call_text` wrote, or a model. Raises ValueError, which says what is wrong with it.

    What `json_text` cannot write is no call, though JSON may spell it: "\\ud800", or 1e999.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at line {error.lineno} column {error.colno})") from None
    except RecursionError:
        raise ValueError("objects in objects, too deep to be read") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str):
        raise ValueError('"name" is missing, or not text')
    if not isinstance(arguments, dict):
        raise ValueError('"arguments" is missing, or not a JSON object')
    json_text(value)
    return Call(name, arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is a number that JSON does not have")


def answer_with_calls(text: str, calls: Iterable[str]) -> str:
    """What YaYi says where it calls tools: a text, which may be empty, and the calls."""
    return text + BETWEEN_CALLS.join(f"{CALL_OPENING}{call}{CALL_CLOSING}" for call in calls)


def split_answer(answer: str) -> tuple[str, tuple[str, ...]]:
    """The text before the first call in what a model says, and the text of each call, which may be wrong.

    The calls go into `ToolUse` and through `read_call` as they are. What stands between and after calls is
    left out. Without calls, the text is the whole answer.
    """
    calls = tuple(match[1].strip() for match in SAID_CALL.finditer(answer))
    return answer.partition("<tool_call>")[0], calls


def declarations_text(tools: Sequence[str]) -> str:
    """The block of all declarations, one a line."""
    return DECLARATIONS_OPENING + "\n".join(tools) + DECLARATIONS_CLOSING


def result_text(value: Any) -> str:
    """What a tool returned, as the model reads it: a text as it is, and anything else as JSON.

    Raises ValueError or TypeError for a value that JSON does not have.
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def error_text(problem: str) -> str:
    """What the model reads instead of a result where a call went wrong."""
    return json.dumps({"error": problem}, ensure_ascii=False)
