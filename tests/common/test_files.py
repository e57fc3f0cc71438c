import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.conftest import ROOT
from training.common import files
from training.common.errors import UserError
from training.common.files import (
    check_empty,
    hold_lock,
    place_files,
    write_atomic,
    write_failure_refused,
    written_aside,
)

# Takes a lock, or is refused, and says which.
TAKER = """
import sys
from pathlib import Path
from training.common.errors import UserError
from training.common.files import hold_lock

try:
    with hold_lock(Path(sys.argv[1]), "taken"):
        print("free")
except UserError as error:
    print(error)
"""


def lock_in_another_process(path: Path) -> str:
    command = [sys.executable, "-c", TAKER, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(
    "content", ["雅意\r\n", "雅意\r\n".encode(), lambda path: path.write_text("雅意\r\n", newline="")]
)
def test_a_file_is_written_whole(content, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before, and longer")
    write_atomic(path, content)
    assert path.read_bytes() == "雅意\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_being_written_is_not_seen_yet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        assert temporary.parent == path.parent  # a rename between two disks is not atomic
        assert path.read_text() == "before"

    write_atomic(path, write)
    assert path.read_text() == "half"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomic(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_directory_are_on_the_disk_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    monkeypatch.setattr(files, "flush", lambda flushed: seen.append((flushed.is_dir(), path.exists())))
    write_atomic(path, "text")
    assert seen == [(False, False), (True, True)]


def test_files_are_placed_with_the_one_that_readers_look_for_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, written = tmp_path / "out", tmp_path / "out" / ".written"
    written.mkdir(parents=True)
    for name in ("a", "config.json", "z"):
        (directory / name).write_text("old")
        (written / name).write_text("new")
        (written / name).chmod(0o600)
    there = []
    replace = Path.replace

    def watched(file: Path, target: Path) -> Path:
        there.append((directory / "config.json").exists())
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", watched)
    place_files(written, directory, last="config.json")
    assert there == [False, False, False]
    assert {path.name: path.read_text() for path in directory.iterdir()} == dict.fromkeys(
        ("a", "config.json", "z"), "new"
    )
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o644}


def test_files_are_written_aside_and_placed_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / ".aside").mkdir()
    (tmp_path / ".aside" / "of a killed process").touch()
    (tmp_path / "config.json").write_text("old")

    def write(fails: bool) -> None:
        with written_aside(tmp_path, ".aside", last="config.json") as aside:
            aside.mkdir()
            (aside / "config.json").write_text("new")
            if fails:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(fails=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.json": "old"}
    write(fails=False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.json": "new"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device", "a/file"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), "Error while serializing: .*"),
        (RuntimeError("[enforce fail at inline_container.cc:672]"), r".enforce fail at inline_container.*"),
    ],
)
def test_a_write_that_fails_is_one_line_with_its_remedy(error: Exception, reason: str) -> None:
    with (
        pytest.raises(UserError, match=rf"^out: cannot be written \({reason}\); make room$"),
        write_failure_refused("out", "make room"),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(2, "No such file", "x")])
def test_a_fault_in_a_block_that_writes_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)), write_failure_refused("out", "make room"):
        raise error


def test_a_lock_is_held_in_its_block_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold_lock(path, "unused"):
        assert lock_in_another_process(path) == "taken\n"
    assert lock_in_another_process(path) == "free\n"


def test_a_lock_is_free_after_a_block_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ValueError, match="ours"), hold_lock(path, "unused"):
        raise ValueError("ours")
    assert lock_in_another_process(path) == "free\n"


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waiter = TAKER.replace('"taken"', '"waiting", wait=True')
    with hold_lock(path, "unused"):
        process = subprocess.Popen(
            [sys.executable, "-c", waiter, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "waiting\n"
        assert process.poll() is None
    assert process.communicate(timeout=60)[0] == "free\n"


def test_a_directory_must_be_empty_or_absent(tmp_path: Path) -> None:
    check_empty(tmp_path, "move it")
    check_empty(tmp_path / "new" / "deep", "move it")
    (tmp_path / ".lock").write_text("")
    check_empty(tmp_path, "move it", ignored=[".lock"])
    with pytest.raises(UserError, match=r"holds something already; move it$"):
        check_empty(tmp_path, "move it")
    with pytest.raises(UserError, match=r"lock: Not a directory; move it$"):
        check_empty(tmp_path / ".lock", "move it")
