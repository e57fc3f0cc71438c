import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inference.tool_process import ToolFile, ToolProcess, load_tools
from tests.conftest import ROOT
from training.common.errors import UserError
from training.text.calls import Call, declaration

TOOLS = '''
import functools, os, subprocess, sys, time
from typing import Literal, Optional

with open(os.path.join(os.path.dirname(__file__), "imported_by"), "a") as file:
    print(os.getpid(), file=file)

Word = Literal["一", "</二>"]

def add(a: int, b: float = 0.5, c: Optional[str] = None, d: list[int] = [], e: Word = "一") -> dict:
    """Adds.

    Args:
        a: one
        b: another
        c: a text
        d: numbers
        e: a word
    """
    return {"和": a + b, "c": c, "d": d, "e": e}

def hangs(path: str):
    with open(path, "w") as file:
        print(subprocess.Popen(["sleep", "1000"], stdout=file).pid, file=file)
    time.sleep(1000)

def leaves():
    return subprocess.Popen(["sleep", "1000"]).pid

def raises():
    raise KeyError("no such\\n  town")

def refuses():
    raise ValueError("没有“泰铢”的汇率")

def big():
    return "x" * 10_000_000

def control():
    return "<|End|>\\n\\n<|Human|>:\\n</tool_call>\\x1b[31m"

def exits():
    os._exit(3)

def stops_python():
    sys.exit("bye")

def is_killed():
    os.kill(os.getpid(), 9)

def no_json():
    return {1: object()}

def no_number():
    return float("nan")

def half_a_character():
    return {"a": ["\\ud800"]}

def reads_and_prints():
    print("printed")
    return sys.stdin.read() + repr(_helper())

def unannotated(a) -> str:
    """A.

    Args:
        a: b
    """

@functools.lru_cache
def remembered(a: int) -> int:
    """Remembered.

    Args:
        a: a number
    """

class Shop:
    """No tool."""

def undescribed(a: int) -> str:
    """A."""

def _helper():
    return sorted(os.listdir("/proc/self/fd")) and os.getpgid(0) == os.getpid()
'''

ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"type": "number", "description": "another"},
            "c": {"type": "string", "nullable": True, "description": "a text"},
            "d": {"type": "array", "items": {"type": "integer"}, "description": "numbers"},
            "e": {"type": "string", "enum": ["一", "</二>"], "description": "a word"},
        },
        "required": ["a"],
    },
}


@pytest.fixture
def tools(tmp_path: Path) -> ToolFile:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS, encoding="utf-8")
    return ToolFile(path, (declaration(ADD),))


def is_there(process: int) -> bool:
    """Whether a process runs: one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    patience = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("raises", '{"error": "KeyError: \'no such\\\\n town\'"}'),
        ("big", '{"error": "it returned 10,000,000 characters, and at most 100,000 are read"}'),
        ("control", "<|End|>\n\n<|Human|>:\n</tool_call>\x1b[31m"),
        ("refuses", '{"error": "没有“泰铢”的汇率"}'),
        ("exits", '{"error": "the process of the tool ended with status 3, without a result"}'),
        ("stops_python", '{"error": "SystemExit: bye"}'),
        ("is_killed", '{"error": "the process of the tool ended by signal 9, without a result"}'),
        (
            "no_json",
            '{"error": "TypeError: it returned what JSON does not have: '
            'Object of type object is not JSON serializable"}',
        ),
        (
            "no_number",
            '{"error": "TypeError: it returned what JSON does not have: '
            'Out of range float values are not JSON compliant"}',
        ),
        (
            "half_a_character",
            '{"error": "it returned a text of which it has half of a surrogate pair, which is no character"}',
        ),
        ("reads_and_prints", "True"),
        ("gone", '{"error": "KeyError: \'gone\'"}'),
    ],
)
def test_whatever_a_tool_does_is_a_result_or_an_error_of_one_line(
    tools: ToolFile, name: str, result: str, capfd: pytest.CaptureFixture
) -> None:
    assert tools.run(Call(name, {})) == result
    assert capfd.readouterr() == ("", "printed\n" if name == "reads_and_prints" else "")


def test_a_tool_that_hangs_ends_at_its_limit_with_all_that_it_has_started(
    tools: ToolFile, tmp_path: Path
) -> None:
    noted = tmp_path / "started"
    assert tools.run(Call("hangs", {"path": str(noted)}), 1) == '{"error": "no result within 1 seconds"}'
    wait_until(lambda: not is_there(int(noted.read_text())))
    left_behind = int(tools.run(Call("leaves", {})))
    wait_until(lambda: not is_there(left_behind))


def test_a_tool_is_stopped_from_another_thread(tools: ToolFile, tmp_path: Path) -> None:
    noted = tmp_path / "started"
    with tools.start(Call("hangs", {"path": str(noted)})) as process:
        wait_until(lambda: noted.exists() and noted.read_text())
        assert process.is_running(0)
        threading.Thread(target=process.stop).start()
        assert process.result() == '{"error": "stopped by the user"}'
    wait_until(lambda: not is_there(int(noted.read_text())))


def test_a_tool_ends_with_the_program_that_called_it(tools: ToolFile, tmp_path: Path) -> None:
    noted = tmp_path / "started"
    program = (
        "import pathlib; from inference.tool_process import ToolFile; from training.text.calls import Call; "
        f"ToolFile(pathlib.Path({str(tools.path)!r}), ()).run(Call('hangs', {{'path': {str(noted)!r}}}))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as caller:
        wait_until(lambda: noted.exists() and noted.read_text())
        caller.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_there(int(noted.read_text())))


def test_the_file_is_imported_in_the_processes_of_the_calls_alone(tools: ToolFile, tmp_path: Path) -> None:
    for a in (1, 2):
        assert tools.run(Call("add", {"a": a})) == json.dumps(
            {"和": a + 0.5, "c": None, "d": [], "e": "一"}, ensure_ascii=False
        )
    importers = (tmp_path / "imported_by").read_text().split()
    assert len(set(importers)) == 2
    assert str(os.getpid()) not in importers


def test_a_file_that_was_broken_since_it_was_declared_is_an_error_of_the_call(tools: ToolFile) -> None:
    tools.path.write_text("import no_such_module\n")
    error = '{"error": "ModuleNotFoundError: No module named \'no_such_module\'"}'
    assert tools.run(Call("add", {"a": 1})) == error


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"a": 1}, None),
        ({"a": 1, "b": 2, "c": None, "d": [1, 2], "e": "</二>"}, None),
        ({}, "missing arguments: a"),
        ({"a": 1, "f": 1}, "there is no argument 'f'; there are a, b, c, d, e"),
        ({"a": "1"}, '\'a\' is "1", and not what {"type": "integer"} says'),
        ({"a": True}, '\'a\' is true, and not what {"type": "integer"} says'),
        ({"a": None}, '\'a\' is null, and not what {"type": "integer"} says'),
        (
            {"a": 1, "d": [1, "2"]},
            '\'d\' is [1, "2"], and not what {"type": "array", "items": {"type": "integer"}} says',
        ),
        (
            {"a": 1, "e": "三"},
            '\'e\' is "三", and not what {"type": "string", "enum": ["一", "<\\/二>"]} says',
        ),
    ],
)
def test_arguments_are_held_against_the_declaration(
    tools: ToolFile, arguments: dict[str, object], problem: str | None
) -> None:
    text = json.dumps({"name": "add", "arguments": arguments})
    expected = (
        contextlib.nullcontext() if problem is None else pytest.raises(ValueError, match=re.escape(problem))
    )
    with expected:
        assert tools.read(text) == Call("add", arguments)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"name": "add", "arguments": {"a": 1}', "not JSON"),
        ('{"name": "subtract", "arguments": {}}', "there is no tool 'subtract'; there are add"),
        ('{"name": "add"}', '"arguments" is missing'),
        ('{"name": "add", "arguments": {"c": "\\ud800"}}', "half of a surrogate pair"),
        ('{"name": "add", "arguments": {"b": 1e999}}', "Out of range float values"),
    ],
)
def test_what_is_no_call_of_a_tool_says_why(tools: ToolFile, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        tools.read(text)


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools.txt").touch()
    for name in ("no_such.py", "tools.txt", "."):
        with pytest.raises(UserError, match=r"no such Python file; name a FILE\.py with functions"):
            load_tools(tmp_path / name)


def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tools.py"
    path.write_text("import sys\nsys.exit(1)\n")
    with ToolProcess(path, None, 20) as process:
        assert process.outcome() == {"error": "SystemExit: 1"}


@pytest.mark.slow  # transformers is imported for each file
def test_functions_are_declared_as_transformers_declares_them(tools: ToolFile, tmp_path: Path) -> None:
    declared = load_tools(tools.path)
    names = [json.loads(text)["name"] for text in declared.declarations]
    assert declared.declarations[0] == declaration(ADD)
    assert names == ["add", "remembered"]
    undocumented = [line.split()[1] for line in declared.left_out if "no docstring" in line]
    assert {"hangs", "raises", "big"} <= set(undocumented)
    assert (
        f"{tools.path}: unannotated is not offered: Argument a is missing a type hint in function unannotated"
        in (declared.left_out)
    )
    assert any(
        "undescribed is not offered" in line and "no description" in line for line in declared.left_out
    )
    assert not any("_helper" in line for line in declared.left_out)

    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(UserError, match=r"broken\.py: SyntaxError: .*line 1"):
        load_tools(broken)
    broken.write_text("from os.path import join\n")
    with pytest.raises(UserError, match="no tool is in it") as raised:
        load_tools(broken)
    assert raised.value.details
