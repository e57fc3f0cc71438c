import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.run import typed_command as module
from training.run.typed_command import command_to_continue, typed_command

CHILD = "from training.run.typed_command import typed_command; print(typed_command())"


def test_the_command_of_one_process_and_the_one_that_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "launchers", list)
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--data-path", "a b.jsonl", "--lr", "1"])
    first = command_to_continue(typed_command(), "run")
    assert first == "python -m training.trainer --data-path 'a b.jsonl' --lr 1 --run-name run --resume"
    assert command_to_continue(first, "run") == first
    assert command_to_continue("x --run-name=run", "run") == "x --run-name=run --resume"
    monkeypatch.setattr(sys, "orig_argv", ["python3.12", "-u", "-m", "training.trainer", *sys.argv[1:]])
    assert typed_command() == "python3.12 -u -m training.trainer --data-path 'a b.jsonl' --lr 1"


@pytest.mark.parametrize(
    ("launcher", "typed"),
    [
        (["deepspeed", "--num_gpus=2", "--module"], "deepspeed --num_gpus=2 --module"),
        (["torchrun", "--nproc-per-node", "2", "-m"], "torchrun --nproc-per-node 2 -m"),
        (["accelerate", "launch", "--multi_gpu", "-m"], "accelerate launch --multi_gpu -m"),
    ],
)
def test_the_command_is_the_one_that_the_launcher_was_given(
    tmp_path: Path, launcher: list[str], typed: str
) -> None:
    """Stand-ins of the launchers start, through a process between, a rank that asks for its command."""
    arguments = ["training.trainer", "--data-path", "a b.jsonl"]
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, *sys.argv[1:]])"
    path = tmp_path / launcher[0]
    path.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {between!r}, *{arguments[1:]!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, str(path), *launcher[1:], *arguments],
        env={**os.environ, "LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"{typed} training.trainer --data-path 'a b.jsonl'", done.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_srun_is_no_parent_of_its_tasks_and_is_found_beside_them(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    task = ["training.trainer", "--lr", "1"]
    processes = {"srun --ntasks=3 python -m training.trainer --lr 2": 1, "bash job.sh --lr 1": 2}
    if is_there:
        processes["/usr/bin/srun --ntasks=2 python -m training.trainer --lr 1"] = 3
    monkeypatch.setattr(module.psutil, "process_iter", lambda: iter(processes))
    monkeypatch.setattr(module, "command_of", shlex.split)
    monkeypatch.setattr(module, "launchers", list)
    monkeypatch.setattr(module, "in_slurm_step", lambda: True)
    monkeypatch.setattr(sys, "argv", task)
    expected = "srun --ntasks=2 python" if is_there else "srun python"
    assert typed_command() == f"{expected} -m training.trainer --lr 1"


@pytest.mark.parametrize("is_there", [True, False])
def test_deepspeeds_launcher_of_a_node_is_not_what_was_typed(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """pdsh starts it on each node; the launcher that was typed is a parent of pdsh."""
    of_node = "python -u -m deepspeed.launcher.launch --world_info=e30= --module training.trainer --lr 1"
    typed = "python /venv/bin/deepspeed --hostfile nodes --module training.trainer --lr 1"
    monkeypatch.setattr(module, "launchers", lambda: [of_node])
    monkeypatch.setattr(
        module, "launcher_command", lambda command: command.split()[3 if "-u" in command else 1 :]
    )
    monkeypatch.setattr(module.psutil, "process_iter", lambda: iter([of_node, *[typed] * is_there]))
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--local_rank=0", "--lr", "1"])
    expected = "/venv/bin/deepspeed --hostfile nodes" if is_there else "deepspeed"
    assert typed_command() == f"{expected} --module training.trainer --lr 1"
