"""What ends a run early, a signal or the end of its launcher; and what says so: a status, and a file."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType, TracebackType

from training.common.console import say
from training.common.files import write_atomic
from training.common.launchers import has_ended, launchers

# Schedulers and people end a run by these: SIGHUP comes from a terminal that closes, SIGUSR1 and SIGUSR2 from
# Slurm's --signal, for example.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# The exit status of each rank of a run that was stopped, and can go on: EX_TEMPFAIL of sysexits.h.
STOPPED_STATUS = os.EX_TEMPFAIL

# The file in the run directory that says that the run was stopped; it is gone when the run goes on.
STOPPED = "stopped"


class StopRequest:
    """A context in which a signal does not end the process, but becomes the `reason` to stop.

    `reason` is None as long as nobody has asked. A SIGHUP that is ignored when the block begins stays ignored
    (nohup). While `ends_at_once` is true, because there is nothing to save, a signal ends the process with
    STOPPED_STATUS where it stands. A process that ends with that status ignores further signals: a launcher
    that sees one rank end sends one to the others.

    noted_in: the run directory, in which rank 0 notes a signal as soon as it comes, since the process may be
    killed before it has saved. goes_on_from: the step of the checkpoint that it would then go on from. The
    note is taken back where an error ends the block: that run failed. A rank that dies may be the cause both
    of the error and of the signal, which the launcher then sends to the others.
    """

    def __init__(self) -> None:
        self.ends_at_once = False
        self.noted_in: Path | None = None
        self.goes_on_from = 0
        self._signal: str | None = None
        self._launchers = launchers()

    def __enter__(self) -> "StopRequest":
        heeded = [number for number in SIGNALS if not _is_ignored(number)]
        self._before = {number: signal.signal(number, self._take_note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error and not is_stopped(error):
            self.withdraw()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if is_stopped(error) else handler)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        is_first, self._signal = self._signal is None, signal.Signals(number).name
        if is_first and self.noted_in:
            note_stop(self.noted_in, self.goes_on_from, self._signal)
        if not self.ends_at_once:
            say(f"{self._signal}: saving and stopping after the next step")
        elif is_first:
            say(f"{self._signal}: stopping, before the first step")
            sys.exit(STOPPED_STATUS)

    def withdraw(self) -> None:
        """Take back what was noted: the run has finished or failed, and a signal stops it no more."""
        if self.noted_in:
            noted_in, self.noted_in = self.noted_in, None
            (noted_in / STOPPED).unlink(missing_ok=True)

    def confirm(self, step: int, reason: str) -> None:
        """Note for good that the run has stopped: its checkpoint of optimizer step `step` is complete."""
        if self.noted_in:
            noted_in, self.noted_in = self.noted_in, None
            note_stop(noted_in, step, reason)

    @property
    def reason(self) -> str | None:
        if self._signal is None and any(has_ended(process) for process in self._launchers):
            return "the launcher's end"
        return self._signal


def _is_ignored(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def is_stopped(error: BaseException | None) -> bool:
    """Whether the process is about to end with STOPPED_STATUS."""
    return isinstance(error, SystemExit) and error.code == STOPPED_STATUS


def note_stop(run_dir: Path, step: int, reason: str) -> None:
    """Write into the run directory that its run was stopped after optimizer step `step`. For rank 0."""
    write_atomic(run_dir / STOPPED, json.dumps({"step": step, "reason": reason}) + "\n")
