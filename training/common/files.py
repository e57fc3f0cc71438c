"""What a disk must have done before a file counts, and whether there is room for it."""

import errno
import os
import shutil
from pathlib import Path

# A full disk, a quota, a limit on the size of files, no permission, a disk that is broken.
REFUSALS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
}


def flush(path: Path) -> None:
    """Have what was written to a file or directory on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(directory: Path) -> None:
    """The same for all files and directories in `directory`, and for itself."""
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


def free_bytes(path: Path) -> int:
    """Room on the disk of `path`, which may not be there yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_write_failure(error: Exception) -> bool:
    """Whether a disk refused what was to be written, said in Python's, safetensors' or torch's way."""
    if isinstance(error, OSError):
        return error.errno in REFUSALS
    # torch's RuntimeError and safetensors' own class carry it in their text only.
    return any(sign in str(error) for sign in ("inline_container.cc", "iostream error", "I/O error"))
