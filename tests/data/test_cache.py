import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import BaseFileLock

from tests.conftest import ROOT
from training.common.errors import UserError
from training.common.options import default_cache_dir
from training.data import cache
from training.data.cache import make_once

# Makes a directory slowly, or waits for it, and says what it did.
MAKER = """
import sys, time
from pathlib import Path
from training.data.cache import make_once

def make(directory):
    (directory / "file").write_text("begun")
    print("making", flush=True)
    time.sleep(float(sys.argv[2]))
    (directory / "file").write_text("done")

print(make_once(Path(sys.argv[1]), make).joinpath("file").read_text(), flush=True)
"""


def start(directory: Path, seconds: float, local_rank: str = "0") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(directory), str(seconds)],
        cwd=ROOT, env={**os.environ, "LOCAL_RANK": local_rank}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_directory_is_made_once(tmp_path: Path) -> None:
    made = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "file").write_text("x")

    for _ in range(2):
        assert make_once(tmp_path / "a" / "key", make) == tmp_path / "a" / "key"
    assert len(made) == 1
    assert (tmp_path / "a" / "key" / "file").read_text() == "x"
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"key", "key.lock"}


def test_the_lock_is_free_once_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BaseFileLock, "__del__")  # the block gives it back, not the end of the object
    make_once(tmp_path / "key", lambda directory: None)
    shutil.rmtree(tmp_path / "key")  # as if somebody cleared the cache, while this process goes on
    other = start(tmp_path / "key", 0)
    assert other.communicate(timeout=60)[0].split() == ["making", "done"]


def test_what_fails_is_not_there_and_is_made_anew(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("x")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        make_once(tmp_path / "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    make_once(tmp_path / "key", lambda directory: (directory / "whole").write_text("x"))
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["whole"]


def test_other_ranks_wait_and_other_runs_take_turns(tmp_path: Path) -> None:
    waiting_rank = start(tmp_path / "key", 0, local_rank="1")
    first = start(tmp_path / "key", 2)
    assert first.stdout.readline() == "making\n"
    second = start(tmp_path / "key", 0)
    for process, said in ((first, ["done"]), (waiting_rank, ["done"])):
        assert process.communicate(timeout=60)[0].split() == said
    out, _ = second.communicate(timeout=60)
    assert out.splitlines() == [f"waiting for another run that makes {tmp_path / 'key'}", "done"]


def test_a_killed_run_lets_the_next_one_make_it(tmp_path: Path) -> None:
    killed = start(tmp_path / "key", 600)
    assert killed.stdout.readline() == "making\n"
    waiting = start(tmp_path / "key", 0)
    assert waiting.stdout.readline().startswith("waiting for another run")
    killed.kill()
    killed.communicate()
    assert waiting.communicate(timeout=60)[0].split() == ["making", "done"]


def test_a_rank_does_not_outlive_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([7, 7, 7, 1])
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(cache.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="the launcher ended"):
        make_once(tmp_path / "key", lambda directory: None)


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: .*; --cache-dir says where else"):
        make_once(tmp_path / "file" / "key", lambda directory: None)

    def fill(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device; --cache-dir"):
        make_once(tmp_path / "key", fill)


def test_the_cache_is_in_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "yayi"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "yayi"
