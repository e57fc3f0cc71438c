"""The tools of a user's file, each call of which runs in a process of its own.

tools = load_tools("data/tools_example.py")
tools.declarations                                                        what the model is told of them
tools.run(tools.read('{"name": "exchange_rate", "arguments": {"currency": "欧元"}}'))       "7.74"

The file is imported in those processes alone (`tool_child.py`). Each leads a process group, which is killed
when the call has ended, at its time limit, and when it is stopped.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from training.common.errors import UserError
from training.text.calls import Call, declaration, declared_name, error_text, json_text, read_call

CHILD = Path(__file__).with_name("tool_child.py")

# How long a call may take, and the import of the file for its declarations.
TIME_LIMIT_S = 60

# The Python types of a value that JSON Schema calls by these names; of others, any value is taken.
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class ToolFile:
    """The functions of a file as tools.

    declarations: the JSON text of each, as `calls.declaration` writes it. left_out: a line for each function
    that is not offered, because it lacks its docstring, say.
    """

    path: Path
    declarations: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @cached_property
    def _parameters(self) -> dict[str, dict[str, Any]]:
        """The JSON Schema of each tool's arguments."""
        return {declared_name(text): json.loads(text).get("parameters", {}) for text in self.declarations}

    @property
    def digest(self) -> str:
        """A hash of what the results of calls depend on, as far as it is known: file and declarations."""
        parts = (self.path.read_bytes(), *(text.encode() for text in self.declarations))
        return hashlib.blake2b(b"\n".join(parts), digest_size=16).hexdigest()

    def read(self, text: str) -> Call:
        """The call in what a model says. Raises ValueError, which says what is wrong, where it is no call of
        one of these tools with the arguments that it takes.
        """
        call = read_call(text)
        if call.name not in self._parameters:
            raise ValueError(f"there is no tool {call.name!r}; there are {', '.join(self._parameters)}")
        _check_arguments(call.arguments, self._parameters[call.name])
        return call

    def start(self, call: Call, time_limit_s: float = TIME_LIMIT_S) -> "ToolProcess":
        """The process of a call, in a `with` block, which it does not outlive."""
        return ToolProcess(self.path, call, time_limit_s)

    def run(self, call: Call, time_limit_s: float = TIME_LIMIT_S) -> str:
        """What the call returns, or what went wrong, as the model reads it."""
        with self.start(call, time_limit_s) as process:
            return process.result()


def load_tools(path: str | Path) -> ToolFile:
    """The tools of a Python file. Raises UserError where there are none, or the file cannot be imported."""
    path = Path(os.path.expanduser(path))
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--tools {path}: no such Python file; name a FILE.py with functions")
    with ToolProcess(path, None, TIME_LIMIT_S) as process:
        done = process.outcome()
    if "error" in done:
        raise UserError(f"--tools {path}: {done['error']}")
    declarations = []
    for tool in done["tools"]:
        try:
            declarations.append(declaration(tool))
        except ValueError as error:
            done["left_out"].append(f"{path}: {tool['function']['name']} is not offered: {error}")
    if not declarations:
        lines = done["left_out"] or [f"{path}: it defines no function whose name begins with a letter"]
        raise UserError(f"--tools {path}: no tool is in it", lines)
    return ToolFile(path, tuple(declarations), tuple(done["left_out"]))


class ToolProcess:
    """The process of one call of a tool, or, without a call, of the declarations of a file's tools."""

    def __init__(self, path: Path, call: Call | None, time_limit_s: float) -> None:
        self._path, self._call, self._time_limit_s = path, call, time_limit_s
        self._is_stopped = self._is_too_slow = False

    def __enter__(self) -> "ToolProcess":
        # The outcome is in a file and not in a pipe: neither a tool that ends early nor a process that it has
        # left behind can keep the reader waiting.
        self._outcome: BinaryIO = tempfile.TemporaryFile()
        self._ends_at = time.monotonic() + self._time_limit_s
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(self._path), str(self._outcome.fileno())],
            stdin=subprocess.PIPE,
            stdout=2,  # what a tool prints is no part of an answer
            pass_fds=[self._outcome.fileno()],
            start_new_session=True,
        )
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended already, as `outcome` says
            self._process.stdin.write(json.dumps(self._call and self._call._asdict()).encode() + b"\n")
            self._process.stdin.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self._kill()
            self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
        self._outcome.close()

    def is_running(self, patience_s: float) -> bool:
        """Whether the call has not ended after so many seconds. At the time limit it ends in any case."""
        left = self._ends_at - time.monotonic()
        try:
            self._process.wait(max(0, min(left, patience_s)))
        except subprocess.TimeoutExpired:
            if left > patience_s:
                return True
            self._is_too_slow = True
        self._kill()  # with what the tool has left behind
        self._process.wait()
        return False

    def stop(self) -> None:
        """End the call; the model reads that it was stopped."""
        self._is_stopped = True
        self._kill()

    def result(self) -> str:
        """What the call returns, or what went wrong, as the model reads it; waits until it has ended."""
        done = self.outcome()
        if "error" not in done:
            try:
                json_text(done["result"])
            except ValueError as error:
                done = {"error": f"it returned a text of which {error}"}
        return done["result"] if "error" not in done else error_text(done["error"])

    def outcome(self) -> dict[str, Any]:
        """What `tool_child` wrote, or {"error": ...}; waits until the process has ended."""
        while self._process.returncode is None and self.is_running(self._time_limit_s):
            pass
        status = self._process.wait()
        if self._is_stopped:
            return {"error": "stopped by the user"}
        if self._is_too_slow:
            return {"error": f"no result within {self._time_limit_s:g} seconds"}
        self._outcome.seek(0)
        try:
            return json.loads(self._outcome.read())
        except ValueError:
            how = f"with status {status}" if status >= 0 else f"by signal {-status}"
            return {"error": f"the process of the tool ended {how}, without a result"}

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _check_arguments(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments that are not those of a tool's "parameters"."""
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        raise ValueError(f"missing arguments: {', '.join(missing)}")
    if "properties" not in parameters:  # any arguments are right
        return
    properties = parameters["properties"]
    for name, value in arguments.items():
        if name not in properties:
            raise ValueError(f"there is no argument {name!r}; there are {', '.join(properties) or 'none'}")
        if not _is_valid(value, properties[name]):
            schema = {key: rest for key, rest in properties[name].items() if key != "description"}
            raise ValueError(f"{name!r} is {json_text(value)}, and not what {json_text(schema)} says")


def _is_valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of a JSON Schema, as far as `get_json_schema` writes one."""
    if value is None and schema.get("nullable"):
        return True
    if "anyOf" in schema:
        return any(_is_valid(value, each) for each in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    names = schema.get("type", list(TYPES))
    if not any(
        name not in TYPES or type(value) in TYPES[name]
        for name in ([names] if isinstance(names, str) else names)
    ):
        return False
    return not isinstance(value, list) or all(_is_valid(each, schema.get("items", {})) for each in value)
