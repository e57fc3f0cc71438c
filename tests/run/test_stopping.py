import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.run import stopping
from training.run.stopping import StopRequest, command_to_continue


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_is_noted_and_nothing_ends(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.reason is None
        os.kill(os.getpid(), number)
        assert request.reason == number.name
    assert signal.getsignal(number) is before


def test_the_end_of_a_launcher_is_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the launcher starts a process that watches it, and is killed."""
    script = tmp_path / "deepspeed"
    child = (
        "import time, sys; from training.run.stopping import StopRequest; request = StopRequest(); "
        "print(request.reason, flush=True); sys.stdin.readline(); time.sleep(0.2); "
        "print(request.reason, flush=True)"
    )
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n")
    launcher = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "LOCAL_RANK": "0", "PYTHONPATH": os.getcwd()},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launcher.stdout.readline() == "None\n"
    launcher.kill()
    launcher.wait()
    launcher.stdin.write("\n")
    launcher.stdin.flush()
    assert launcher.stdout.readline() == "the launcher's end\n"


def test_without_a_launcher_there_is_none_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert stopping.launchers() == []


def test_the_command_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "launchers", list)
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--data-path", "a b.jsonl", "--lr", "1"])
    first = command_to_continue("run")
    assert first == "python -m training.trainer --data-path 'a b.jsonl' --lr 1 --run-name run --resume"
    monkeypatch.setattr(sys, "argv", ["trainer.py", *shlex.split(first)[3:]])
    assert command_to_continue("run") == first
