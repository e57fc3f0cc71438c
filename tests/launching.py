"""Start the real launcher in tests, watch what it prints, and read the files that it left."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.conftest import ROOT

ZERO2 = "config/deepspeed_zero2_bf16_no_offload.json"
ZERO3 = "config/deepspeed_zero3_bf16.json"


def environment() -> dict[str, str]:
    """Environment variables with which the launcher is found beside the interpreter that runs the tests.

    One thread for each process: with models this small, and other tests beside, threads only wait.
    """
    return {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def free_port() -> int:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return port.getsockname()[1]


def run(*command: str, timeout: int = 600) -> subprocess.CompletedProcess:
    """Run a command to its end; nothing that it started is left running, whatever happens."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        kill(family(process))
        out, err = process.communicate()
        print(out, err, sep="\n")
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def launcher(ranks: int, *arguments: str, module: str = "training.trainer") -> list[str]:
    return [
        "deepspeed",
        f"--num_gpus={ranks}",
        f"--master_port={free_port()}",
        "--module",
        module,
        *arguments,
    ]


def launch(ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    return run(*launcher(ranks, *arguments))


class Running:
    """A run in the background."""

    def __init__(self, *command: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_until(self, holds: Callable[[], bool], seconds: float = 240) -> bool:
        """Wait until a condition holds. Returns whether it did before the run ended."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.output
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def wait_for_step(self, step: int) -> bool:
        """Wait until a step is printed. Returns whether it was before the run ended."""
        return self.wait_until(lambda: any(line.startswith(f"step {step}/") for line in self.lines))

    def family(self) -> list[psutil.Process]:
        return family(self.process)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, in their order, whatever launcher started them."""
        found = {}
        for process in self.family():
            try:
                _, *command = (part for part in process.cmdline() if part != "-u")
                if command[0] == "-m" and command[1].startswith(("training.", "tests.")):
                    variables = process.environ()
                    found[variables.get("RANK") or variables["SLURM_PROCID"]] = process
            except (psutil.Error, KeyError, IndexError, ValueError):
                continue
        return [found[rank] for rank in sorted(found)]

    def finish(self, seconds: float = 300) -> int:
        """The launcher's exit status, once it has ended and all that it printed was read."""
        status = self.process.wait(timeout=seconds)
        self._reader.join(timeout=60)  # a rank that outlives its launcher may still print
        return status


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        above = psutil.Process(process.pid)
        return [above, *above.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def history(run_dir: Path) -> list[dict]:
    """The log entries in the run's last checkpoint."""
    checkpoint = max(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


def values(run_dir: Path, name: str) -> list[float]:
    """The values under one name in the log entries, in their order."""
    return [entry[name] for entry in history(run_dir) if name in entry]


def printed_losses(output: str) -> dict[int, str]:
    """The loss of each step, by its number, as the log lines have it."""
    return dict((int(step), loss) for step, loss in re.findall(r"^step (\d+)/\d+  loss (\S+)", output, re.M))
