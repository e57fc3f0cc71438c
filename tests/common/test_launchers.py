import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from training.common.launchers import has_ended, is_of_a_cluster, launcher_command


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("python /venv/bin/deepspeed --num_gpus=2 x", "deepspeed --num_gpus=2 x"),
        ("/venv/bin/python3.11 -u -m deepspeed.launcher.launch x", "python -m deepspeed.launcher.launch x"),
        ("python -m torch.distributed.run x", "python -m torch.distributed.run x"),
        ("python /venv/bin/torchrun -m x", "torchrun -m x"),
        ("python -m training.trainer --deepspeed deepspeed", None),
        ("python train.py deepspeed", None),
        ("bash /venv/bin/deepspeed", None),
        ("python -u", None),
        ("", None),
    ],
)
def test_a_launcher_is_known_by_its_script_or_module(command: str, typed: str | None) -> None:
    found = launcher_command(SimpleNamespace(cmdline=command.split))
    assert found == (typed and typed.split())


def test_what_starts_processes_on_a_cluster() -> None:
    for command, is_one in (
        ("/usr/bin/mpiexec x", True),
        ("sh /bin/mpirun", True),
        ("bash srun.sh", False),
    ):
        assert is_of_a_cluster(SimpleNamespace(cmdline=command.split)) is is_one


def test_a_process_that_nobody_has_waited_for_has_ended_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert not has_ended(process)
    child.kill()
    deadline = time.monotonic() + 60
    while not has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.is_running()  # as a zombie
    assert has_ended(process)
    child.wait()
    assert has_ended(process)
