"""Directories that are expensive to make: each is made once, and is complete or absent."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from training.common.errors import UserError
from training.common.files import flush, flush_all, hold_lock

POLL_S = 0.2


def make_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Return `directory`; if it does not exist, `make` fills another one, which is then renamed to it.

    The first rank of each node makes it; the others wait until it is there, without a collective that could
    time out. (If the first fails, the launcher ends them.) Runs that need the same directory take turns. The
    remains of a killed run are removed by the next.

    Raises UserError where the disk refuses a write.
    """
    if directory.is_dir():
        return directory
    if os.environ.get("LOCAL_RANK", "0") != "0":
        _wait_for(directory)
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(
            Path(f"{directory}.lock"), f"waiting for another run that makes {directory}", wait=True
        ):
            if not directory.is_dir():
                partial = directory.with_name(f"{directory.name}.partial")
                if partial.exists():
                    shutil.rmtree(partial)
                partial.mkdir()
                try:
                    make(partial)
                    flush_all(partial)
                except BaseException:
                    shutil.rmtree(partial)
                    raise
                partial.rename(directory)
                flush(directory.parent)
    except OSError as error:
        raise UserError(f"{directory.parent}: {error.strerror}; --cache-dir says where else") from None
    return directory


def _wait_for(directory: Path) -> None:
    launcher = os.getppid()
    while not directory.is_dir():
        if os.getppid() != launcher:
            raise UserError(f"{directory}: the launcher ended before it was made")
        time.sleep(POLL_S)
