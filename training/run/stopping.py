"""What ends a run early: a signal, or the end of its launcher."""

import os
import shlex
import signal
import sys
from types import FrameType, TracebackType

import psutil

from training.common.console import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which a signal does not end the process, but becomes the `reason` to stop.

    `reason` is None as long as nobody has asked.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._launchers = launchers()

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._take_note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        say(f"{self._signal}: saving and stopping after the next step")

    @property
    def reason(self) -> str | None:
        if self._signal is None and not all(process.is_running() for process in self._launchers):
            return "the launcher's end"
        return self._signal


def launchers() -> list[psutil.Process]:
    """The DeepSpeed processes above this one: what starts a node's ranks, then what the user started."""
    if "LOCAL_RANK" not in os.environ:
        return []
    return [process for process in psutil.Process().parents() if _runs_deepspeed(process)]


def _runs_deepspeed(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    is_python = bool(command) and os.path.basename(command[0]).startswith("python")
    return is_python and any("deepspeed" in part for part in command[1:4])


def command_line() -> str:
    """The command of this run, as the user gave it to the launcher or to Python."""
    above = launchers()
    if above:
        return shlex.join(["deepspeed", *above[-1].cmdline()[2:]])
    return shlex.join(["python", "-m", "training.trainer", *sys.argv[1:]])


def command_to_continue(run_name: str) -> str:
    """The command that continues this run: its own, with --run-name and --resume."""
    command = shlex.split(command_line())
    if "--run-name" not in command and not any(part.startswith("--run-name=") for part in command):
        command += ["--run-name", run_name]
    if "--resume" not in command:
        command.append("--resume")
    return shlex.join(command)
