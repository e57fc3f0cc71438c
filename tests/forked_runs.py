"""Many runs under one start of the launcher: `deepspeed --module tests.forked_runs DIRECTORY PID`.

A start of the launcher mostly imports packages. Here each rank imports them once and forks a process for each
run, so that a run costs its steps and not its imports. A test asks for a run by `ForkedRuns.launch`, which
writes DIRECTORY/NUMBER.json; each rank waits for these files, in the order of their numbers, and writes what
its process printed to NUMBER.RANK.log and then its exit status to NUMBER.RANK.status. The ranks end with the
process PID, which is that of the tests.
"""

import gc
import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import psutil

from tests.launching import Running, free_port, kill, launcher
from training.common.files import write_atomic

END = "end"  # the file that ends the ranks


class ForkedRuns:
    """The launcher with so many ranks, which the first run starts and which is there until `end`."""

    def __init__(self, ranks: int, directory: Path) -> None:
        self._ranks, self._directory = ranks, directory
        self._running: Running | None = None
        self._requests, self._count = directory, 0

    def launch(
        self, *arguments: str, module: str = "training.trainer", **variables: str
    ) -> subprocess.CompletedProcess:
        """Run a module to its end, as `tests.launching.launch` does.

        module: the trainer, or one of our modules that runs it. variables: of the environment, for this run.
        The result has rank 0's output, of both kinds, as its stdout and its stderr. Where ranks end with
        different statuses, or one does not end within ten minutes, AssertionError is raised, and the next
        run starts the launcher anew.
        """
        try:
            return self._launch(module, arguments, variables)
        except BaseException:
            self._kill()
            raise

    def _launch(
        self, module: str, arguments: tuple[str, ...], variables: dict[str, str]
    ) -> subprocess.CompletedProcess:
        if self._running is None:
            self._requests, self._count = Path(tempfile.mkdtemp(dir=self._directory)), 0
            asked = [str(self._requests), str(os.getpid())]
            self._running = Running(*launcher(self._ranks, *asked, module="tests.forked_runs"))
        self._count += 1
        request = {
            "module": module,
            "arguments": arguments,
            "environment": {"MASTER_PORT": str(free_port()), **variables},
        }
        write_atomic(self._file("json"), json.dumps(request))
        statuses = [self._file(f"{rank}.status") for rank in range(self._ranks)]
        ended = self._running.wait_until(lambda: all(path.exists() for path in statuses), seconds=600)
        assert ended, self._running.output
        logs = [self._file(f"{rank}.log").read_text("utf-8") for rank in range(self._ranks)]
        found = {int(path.read_text()) for path in statuses}
        assert len(found) == 1, f"statuses {found}\n" + "\n".join(logs)
        return subprocess.CompletedProcess(arguments, found.pop(), logs[0], logs[0])

    def _file(self, ending: str) -> Path:
        return self._requests / f"{self._count}.{ending}"

    def end(self) -> None:
        if self._running is not None:
            (self._requests / END).touch()
            try:
                assert self._running.finish() == 0, self._running.output
            finally:
                self._kill()

    def _kill(self) -> None:
        if self._running is not None:
            kill(self._running.family())
            self._running = None


def wait_for_request(directory: Path, number: int, tests: int) -> dict | None:
    """The request of this number once it is there, or None if there will be no more."""
    path = directory / f"{number}.json"
    while not path.exists():
        if (directory / END).exists() or not psutil.pid_exists(tests):
            return None
        time.sleep(0.05)
    return json.loads(path.read_text("utf-8"))


def become(request: dict, log: Path) -> NoReturn:
    """Go on as the requested module, with the output in a file, to the end of this process."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= request["environment"]
    sys.argv = ["trainer", *request["arguments"]]
    if request["module"] == "training.trainer":
        from training import trainer
        from training.common.errors import run_command

        run_command(trainer.main)
    runpy.run_module(request["module"], run_name="__main__")
    sys.exit()


def main() -> None:
    from training import trainer  # noqa: F401
    from training.run import speed

    # What a run imports in its course.
    for name in ("deepspeed", "matplotlib.backends.backend_agg", "peft", "torch.utils.tensorboard"):
        importlib.import_module(name)
    speed.MEASURED_SECONDS = 0.01  # a run measures the machine no longer than needed to have a figure
    gc.freeze()  # each run collects garbage, and need not search what was imported
    directory, tests, rank = Path(sys.argv[-2]), int(sys.argv[-1]), os.environ["RANK"]
    for number in itertools.count(1):
        request = wait_for_request(directory, number, tests)
        if request is None:
            break
        child = os.fork()
        if not child:
            become(request, directory / f"{number}.{rank}.log")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        write_atomic(directory / f"{number}.{rank}.status", str(status))


if __name__ == "__main__":
    main()
