"""A pipe as data, such as <(zcat rows.gz) or /dev/stdin: it gives its bytes once, so they are copied."""

import atexit
import hashlib
import os
import platform
import re
import shutil
import stat
from pathlib import Path

import psutil

from training.common.errors import UserError
from training.common.launchers import launchers
from training.common.ranks import ranks_of_node, world_size
from training.data.cache import make_once

# The names under which a process finds its own open files.
OWN_FILES = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)|/dev/stdin")

# The copies of this process, by the name of the pipe.
_copies: dict[str, str] = {}


def path_to_open(path: str) -> str:
    """The path under which the content of `path` can be read any number of times."""
    return _copies.get(path, path)


def is_pipe(path: str) -> bool:
    """Whether `path` is a pipe, copied or not, of this process or of the launcher above it."""
    if path in _copies:
        return True
    where = _where(path)
    try:
        mode = os.stat(where).st_mode
    except OSError:
        return False
    is_own_file = stat.S_ISREG(mode) and where == path
    return not is_own_file and not stat.S_ISDIR(mode)


def copy_pipe(path: str, cache_dir: Path) -> None:
    """Copy what comes out of a pipe into a directory of the cache, which is removed when this process ends.

    The first rank of the node reads the pipe, and the others wait for its copy. It also removes the copies
    that killed processes have left. Raises UserError with several nodes, since only one of them has the pipe.
    """
    if path in _copies:
        return
    if (ranks_of_node() or world_size()) < world_size():
        raise UserError(f"{path}: a pipe, which only one node can read; write its rows to a file first")
    owner = psutil.Process(os.getppid() if "LOCAL_RANK" in os.environ else os.getpid())
    digest = hashlib.blake2b(f"{owner.pid} {owner.create_time()} {path}".encode(), digest_size=16).hexdigest()

    def copy(directory: Path) -> None:
        with open(_where(path), "rb") as pipe, open(directory / "rows", "wb") as file:
            shutil.copyfileobj(pipe, file, 1 << 20)

    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if is_first:
        _remove_leftovers(cache_dir)
    directory = make_once(cache_dir / f"pipe-{platform.node()}-{owner.pid}-{digest}", copy)
    _copies[path] = str(directory / "rows")
    if is_first:
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        atexit.register(Path(f"{directory}.lock").unlink, missing_ok=True)


def _remove_leftovers(cache_dir: Path) -> None:
    """Remove the copies of this host's processes that were killed, and could not remove them at their end."""
    for path in cache_dir.glob(f"pipe-{platform.node()}-*"):
        pid = path.name.split("-")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)  # the lock of one


def _where(path: str) -> str:
    """The path to open: an open file of the command that the user typed is not passed on to the ranks."""
    own = OWN_FILES.fullmatch(path)
    above = launchers() if own else []
    if not own or not above:
        return path
    return f"/proc/{above[-1].pid}/fd/{own[1] or own[2] or '0'}"
