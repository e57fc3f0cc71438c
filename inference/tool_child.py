"""The process of one tool call. `tool_process` starts it; it alone imports the user's file.

python -P inference/tool_child.py FILE.py RESULT < ORDER

FILE.py has the functions. RESULT is the number of an open file, for one JSON object. The first line of stdin
is the order, in JSON:

    null                                                   {"tools": [what get_json_schema gives], "left_out":
                                                            ["tools.py: f is not offered: ..."]}
    {"name": "exchange_rate", "arguments": {...}}          {"result": "7.74"}

Whatever goes wrong in the file is {"error": "NameError: ..."}. stdin stays open as long as the starting
process lives; when it ends, this process ends its process group.
"""

import importlib.util
import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

MODULE = "tools_of_the_user"

# More is not read by a model, and an error's text is one line for a person, too.
LONGEST_RESULT, LONGEST_ERROR = 100_000, 1_000


def main() -> None:
    file, result_number = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(result_number, False)
    stdin = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a tool that reads stdin finds it empty
    order = json.loads(stdin.readline())
    threading.Thread(target=end_with_starter, args=(stdin,), daemon=True).start()
    try:
        done = {"result": result_of(file, **order)} if order else declared(file)
    except BaseException as error:  # a tool may raise anything, SystemExit too
        done = {"error": one_line(error)}
    with os.fdopen(result_number, "wb") as result:
        result.write(json.dumps(done).encode())
    os._exit(0)  # without waiting for threads that the tool has left


def end_with_starter(stdin: BinaryIO) -> None:
    stdin.read()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def functions_of(file: Path) -> dict[str, Callable[..., Any]]:
    """The functions that a file defines, by name; those whose names begin with _ are its own affair."""
    sys.path.insert(0, str(file.resolve().parent))
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec, "the file's name ends in .py"
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return {name: value for name, value in vars(module).items() if is_tool(name, value, module)}


def is_tool(name: str, value: Any, module: ModuleType) -> bool:
    return inspect.isroutine(value) and value.__module__ == module.__name__ and not name.startswith("_")


def declared(file: Path) -> dict[str, list[Any]]:
    """What `get_json_schema` says of each function, and a line for each of which it says that it cannot."""
    functions = functions_of(file)
    from transformers.utils import get_json_schema  # takes seconds

    tools, left_out = [], []
    for name, function in functions.items():
        try:
            schema = get_json_schema(function)
            schema["function"] = {**schema["function"], "name": name}
            json.dumps(schema)
            tools.append(schema)
        except Exception as error:  # annotations are any code
            left_out.append(f"{file}: {name} is not offered: {' '.join(str(error).split())}")
    return {"tools": tools, "left_out": left_out}


def result_of(file: Path, name: str, arguments: dict[str, Any]) -> str:
    """What the call returns, as the model reads it."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from training.text.calls import result_text

    del sys.path[0]
    value = functions_of(file)[name](**arguments)
    try:
        text = result_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"it returned what JSON does not have: {error}") from None
    if len(text) > LONGEST_RESULT:
        raise ValueError(f"it returned {len(text):,} characters, and at most {LONGEST_RESULT:,} are read")
    return text


def one_line(error: BaseException) -> str:
    """What an error says. A ValueError is how a tool says that it has no answer; others are named."""
    name = "" if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: "
    return " ".join(f"{name}{error}".split()).rstrip(":")[:LONGEST_ERROR]


if __name__ == "__main__":
    main()
