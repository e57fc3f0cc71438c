"""Atomic writes, locks, fsync, sizes, and the room on a disk."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.common.console import say
from training.common.errors import UserError, first_line

# Error numbers: a full disk, a quota, a limit on the size of files, no permission, a disk that is broken.
REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
}


def write_atomic(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write the file `path` atomically: until all of it is on the disk, the old file, if any, keeps the name.

    content: text (written as UTF-8, its line ends as they are), bytes, or a function that writes the file at
    the path that it is given. If it fails, `path` stays as it was and nothing is left beside it; what a
    killed process left there is replaced by the next write. Raises OSError, and whatever the function raises.

    Processes that may write the same file at the same time have to hold a lock.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_aside(directory: Path, name: str, last: str) -> Iterator[Path]:
    """The path of the directory `name` in `directory`, whose files are placed there when the block ends.

    What a killed process left under that name is removed first. If the block or the placing fails, nothing is
    left of it. last: as for `place_files`.
    """
    aside = directory / name
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        place_files(aside, directory, last)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def place_files(written: Path, directory: Path, last: str) -> None:
    """Move all files of `written` into `directory`, and remove `written`.

    The file named `last` is the one that readers look for. It is removed first and placed last, so that while
    it is there all files are, and belong together. The files get the mode 0644 and are on the disk (fsync)
    before the first is moved.
    """
    make_readable(written)
    flush_all(written)
    (directory / last).unlink(missing_ok=True)
    for file in sorted(written.iterdir(), key=lambda file: file.name == last):
        file.replace(directory / file.name)
    written.rmdir()
    flush(directory)


def make_readable(directory: Path) -> None:
    """Give all files in `directory` the mode 0644: libraries write some of them for their user alone."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


@contextmanager
def hold_lock(path: Path, taken_message: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path` for the block. The file stays; a process that dies loses its locks.

    taken_message: what to say where another process holds the lock. With `wait` it is printed before this
    waits for that process; otherwise it is the message of the UserError that is raised.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(taken_message) from None
        say(taken_message)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_empty(directory: Path, remedy: str, ignored: Collection[str] = ()) -> None:
    """Raise UserError unless `directory` is absent, or holds nothing but the `ignored` names.

    remedy: what the user is to do, for the end of the message.
    """
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{directory}: {error.strerror}; {remedy}") from None
    if names - set(ignored):
        raise UserError(f"{directory}: holds something already; {remedy}")


def flush(path: Path) -> None:
    """Wait until what was written to a file, or the names in a directory, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(directory: Path) -> None:
    """Flush all files and directories in `directory`, and `directory` itself."""
    for parent, _, names in os.walk(directory, topdown=False):
        for name in names:
            flush(Path(parent, name))
        flush(Path(parent))


def sizes(directory: Path) -> dict[str, int]:
    """The size in bytes of every file in `directory`, by its path there."""
    return {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def existing_parent(path: Path) -> Path:
    """`path`, or where it does not exist, the nearest directory above it that does."""
    while not os.path.exists(path):  # unlike Path.exists, quiet about a parent that may not be read
        path = path.parent
    return path


def try_write(directory: Path) -> None:
    """Raise OSError where no file can be made in `directory`. Leaves no trace."""
    tempfile.TemporaryFile(dir=directory).close()


def home_cache_dir() -> Path:
    """XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def user_cache_dir() -> Path:
    """`home_cache_dir`, or where that cannot be written, a directory of this user's beside temporary files.

    A container may have no home directory, or one that belongs to another user.
    """
    directory = home_cache_dir()
    try:
        try_write(existing_parent(directory))
    except OSError:
        return _temporary_cache_dir()
    return directory


def _temporary_cache_dir() -> Path:
    """A directory that later runs find again, and that nobody else can have put anything into."""
    directory = Path(tempfile.gettempdir(), f"yayi-cache-{os.geteuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    is_ours = directory.stat().st_uid == os.geteuid() and directory.stat().st_mode & 0o077 == 0
    return directory if is_ours and not directory.is_symlink() else Path(tempfile.mkdtemp())


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, which need not exist yet."""
    return shutil.disk_usage(existing_parent(path)).free


def is_write_failure(error: Exception) -> bool:
    """Whether an error of Python, safetensors or torch means that a disk refused a write."""
    if isinstance(error, OSError):
        return error.errno in REFUSALS
    # torch's RuntimeError and safetensors' own class say so in their text only.
    return any(sign in str(error) for sign in ("inline_container.cc", "iostream error", "I/O error"))


@contextmanager
def write_failure_refused(where: Path | str, remedy: str) -> Iterator[None]:
    """A block that writes below `where`. Raises UserError, ending with the remedy, where the disk refuses."""
    try:
        yield
    except Exception as error:
        if not is_write_failure(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"{where}: cannot be written ({reason}); {remedy}") from None
