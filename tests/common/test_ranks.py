import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.test_slurm import TASK
from tests.conftest import ROOT
from training.common.ranks import RANK_VARIABLES, settle_ranks, world_size

CHILD = (
    "import os, sys; from training.common.ranks import RANK_VARIABLES, settle_ranks; settle_ranks(); "
    "print(' '.join(name for name in RANK_VARIABLES if name in os.environ))"
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that these tests set or remove are as before at the end of each."""
    kept = {name: value for name, value in os.environ.items() if name not in (*RANK_VARIABLES, *TASK)}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.setattr(sys, "argv", ["trainer.py"])


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "8"},
        {"LOCAL_RANK": "3"},
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no number"},
    ],
)
def test_what_no_launcher_set_is_ignored_with_one_line(
    left: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    os.environ |= left
    settle_ranks()
    assert not set(RANK_VARIABLES) & set(os.environ)
    assert world_size() == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    name, value = next(iter(left.items()))
    assert f"{name}={value}" in err
    assert "ignored, since no launcher started this process" in err


def test_one_process_that_was_set_up_by_hand_needs_no_line(capsys: pytest.CaptureFixture) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}
    settle_ranks()
    assert world_size() == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("sign", [{"TORCHELASTIC_RUN_ID": "none"}, {"SLURM_STEP_NUM_TASKS": "2"}])
def test_what_a_launcher_set_is_kept(sign: dict[str, str]) -> None:
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2", **sign}
    settle_ranks()
    assert (os.environ["RANK"], world_size()) == ("1", 2)


def test_what_deepspeed_set_is_kept_even_where_its_launcher_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer.py", "--local_rank=1"])
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
    settle_ranks()
    assert world_size() == 2


def test_where_rank_0_answers_the_variables_are_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.environ |= {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(server.getsockname()[1])}
        settle_ranks()
        assert world_size() == 2


def test_tasks_of_srun_become_ranks_but_not_where_a_launcher_has_set_them() -> None:
    os.environ |= TASK
    settle_ranks()
    assert (os.environ["RANK"], os.environ["MASTER_ADDR"], world_size()) == ("15", "gpu08", 16)
    os.environ |= {"RANK": "3", "WORLD_SIZE": "4"}  # torchrun in a task of srun
    settle_ranks()
    assert (os.environ["RANK"], world_size()) == ("3", 4)


@pytest.mark.parametrize(("script", "kept"), [("torchrun", "RANK WORLD_SIZE"), ("notebook", "")])
def test_a_launcher_is_found_among_the_parents(tmp_path: Path, script: str, kept: str) -> None:
    path = tmp_path / script
    path.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{kept}\n"
