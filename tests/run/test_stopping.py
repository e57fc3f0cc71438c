import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.common.errors import UserError
from training.common.launchers import launchers
from training.common.options import Options
from training.run import stopping
from training.run.report import steps_of_report
from training.run.resume import Run, check_new
from training.run.stopping import STOPPED_STATUS, StopRequest, note_stop


@pytest.fixture
def handlers_restored() -> Iterator[None]:
    """After the test signals are handled as before: a process that stops ignores them from then on."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    assert launchers() == []


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("handlers_restored")
def test_before_the_first_step_a_signal_ends_the_process_and_no_other_signal_disturbs_that() -> None:
    request = StopRequest()
    request.ends_at_once = True
    with pytest.raises(SystemExit) as ended, request:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == STOPPED_STATUS == 75
    assert request.reason == "SIGUSR1"
    os.kill(os.getpid(), signal.SIGTERM)  # of a launcher that sees another rank end


def test_a_signal_is_noted_in_the_run_directory_at_once_and_taken_back_at_the_end(tmp_path: Path) -> None:
    with StopRequest() as request:
        request.noted_in, request.goes_on_from = tmp_path, 7
        os.kill(os.getpid(), signal.SIGTERM)
        assert json.loads((tmp_path / "stopped").read_text()) == {"step": 7, "reason": "SIGTERM"}
        request.withdraw()
        assert list(tmp_path.iterdir()) == []
        os.kill(os.getpid(), signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("Connection reset by peer"), UserError("the disk is full")])
def test_a_run_that_fails_after_a_signal_is_none_that_was_stopped(tmp_path: Path, error: Exception) -> None:
    request = StopRequest()
    request.noted_in = tmp_path

    def fail_after_a_signal() -> None:
        with request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (tmp_path / "stopped").exists()
            raise error

    with pytest.raises(type(error)):
        fail_after_a_signal()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_saved_stays_stopped_whatever_comes_after(tmp_path: Path) -> None:
    request = StopRequest()
    request.noted_in = tmp_path

    def save_and_fail() -> None:
        with request:
            request.confirm(9, "another rank's signal")
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("the other rank is gone")

    with pytest.raises(RuntimeError):
        save_and_fail()
    assert json.loads((tmp_path / "stopped").read_text()) == {"step": 9, "reason": "another rank's signal"}


@pytest.mark.usefixtures("handlers_restored")
@pytest.mark.parametrize(("finished", "plan"), [(True, False), (False, True)])
def test_a_start_that_takes_no_step_is_no_run_that_was_stopped(tmp_path: Path, finished, plan) -> None:
    if finished:
        (tmp_path / "report.json").write_text('{"model": {"steps": 4}, "steps": 4}')
        assert steps_of_report(tmp_path) == 4
    run = Run(Options(local_output_dir=tmp_path, run_name="run", plan=plan), tmp_path, None)
    with pytest.raises(SystemExit), run:
        os.kill(os.getpid(), signal.SIGTERM)
    assert not (tmp_path / "stopped").exists()


@pytest.mark.usefixtures("handlers_restored")
def test_a_run_that_is_stopped_before_its_first_step_says_so_and_may_begin_again(tmp_path: Path) -> None:
    run = Run(Options(local_output_dir=tmp_path, run_name="run"), tmp_path / "run", None)
    with pytest.raises(SystemExit), run:
        os.kill(os.getpid(), signal.SIGTERM)
    assert json.loads((tmp_path / "run" / "stopped").read_text()) == {"step": 0, "reason": "SIGTERM"}
    check_new(tmp_path / "run")
    with Run(run.options, run.directory, None) as again:
        again.hold()
        assert not (tmp_path / "run" / "stopped").exists()


def test_the_file_says_where_and_why(tmp_path: Path) -> None:
    note_stop(tmp_path, 12, "SIGTERM")
    assert json.loads((tmp_path / "stopped").read_text()) == {"step": 12, "reason": "SIGTERM"}
