"""Launchers other than DeepSpeed's, with two CPU ranks: torchrun, accelerate, and a stand-in for srun."""

import json
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import SINGLE_TURN
from tests.launching import ZERO2, Running, free_port

pytestmark = pytest.mark.slow

STEPS = 40

# What srun does for `--ntasks=2 COMMAND` on one node, and no more. It ends with the highest status of a task.
SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
assert sys.argv[1] == "--ntasks=2"
step = {{
    "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
}}
tasks = []
for number in ("0", "1"):
    task = {{**os.environ, **step, "SLURM_PROCID": number, "SLURM_LOCALID": number}}
    tasks.append(subprocess.Popen(sys.argv[2:], env=task))
statuses = [task.wait() for task in tasks]
print("statuses", *statuses, flush=True)
sys.exit(max(statuses))
"""


@pytest.fixture
def arguments(base: str, tmp_path: Path) -> list[str]:
    return [
        "training.trainer", "--data-path", str(SINGLE_TURN), "--input-model", base,
        "--local-output-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--test-size", "0",
        "--max-steps", str(STEPS), "--logging-steps", "1", "--per-device-train-batch-size", "2",
        "--run-name=run",
    ]  # fmt: skip


def check_stopped(running: Running, run_dir: Path, reasons: list[str], typed: list[str]) -> list[str]:
    """Check what a stopped run leaves and prints. Returns the command that continues it."""
    stopped = json.loads((run_dir / "stopped").read_text())
    assert stopped["step"] == max(int(path.name.split("-")[1]) for path in run_dir.glob("checkpoint-*"))
    assert 2 <= stopped["step"] < STEPS
    assert stopped["reason"] in reasons
    assert not (run_dir / "report.json").exists()
    at = next(at for at, line in enumerate(running.lines) if line.endswith("to continue:"))
    assert shlex.split(running.lines[at + 1]) == [*typed, "--resume"]
    return shlex.split(running.lines[at + 1])


def test_ranks_whose_torchrun_is_killed_save_and_stop(arguments: list[str], tmp_path: Path) -> None:
    typed = ["torchrun", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", *arguments]
    running = Running(*typed)
    assert running.wait_for_step(2), running.output
    ranks = running.ranks()
    assert len(ranks) == 2
    running.process.kill()
    assert running.finish() == -signal.SIGKILL
    _, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive
    running.finish()
    check_stopped(running, tmp_path / "run", ["the launcher's end"], typed)


def test_a_rank_of_accelerate_that_gets_a_signal_stops_them_all(arguments: list[str], tmp_path: Path) -> None:
    typed = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    typed += [
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--main_process_port={free_port()}",
        "-m",
        *arguments,
    ]
    running = Running(*typed)
    assert running.wait_for_step(2), running.output
    running.ranks()[0].send_signal(signal.SIGUSR1)
    assert running.finish() == 1  # a status of its own, which also tells that of the first rank to end
    assert any(line.split()[:3] == ["exitcode", ":", "75"] for line in running.lines), running.output
    check_stopped(running, tmp_path / "run", ["SIGUSR1"], typed)


def test_tasks_of_srun_are_ranks_that_are_stopped_and_go_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    typed = ["srun", "--ntasks=2", "python", "-m", *arguments, "--deepspeed", ZERO2]
    running = Running(*typed)
    assert running.wait_for_step(2), running.output
    for rank in running.ranks():
        rank.send_signal(signal.SIGHUP)
    assert running.finish() == 75, running.output
    assert "statuses 75 75" in running.lines
    again = check_stopped(running, tmp_path / "run", ["SIGHUP"], typed)

    going_on = Running(*again)
    assert going_on.wait_until(lambda: "continuing from" in going_on.output)
    assert going_on.wait_until(lambda: not (tmp_path / "run" / "stopped").exists())
    assert going_on.finish() == 0, going_on.output
    assert "statuses 0 0" in going_on.lines
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == STEPS
