"""What a run says, from rank 0 alone: lines on stdout, progress on stderr."""

import os
import sys
import time

# Seconds between two lines about the same work.
PROGRESS_EVERY_S = 10


def say(line: str, *, on_stderr: bool = False) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr if on_stderr else sys.stdout, flush=True)


class Progress:
    """Says now and then how much of some work is done, and how fast; nothing where it is done soon."""

    def __init__(self, work: str, unit: str) -> None:
        self._work, self._unit = work, unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= PROGRESS_EVERY_S:
            self._said = now
            speed = self._done / (now - self._started)
            say(f"{self._work}: {self._done:,} {self._unit}, {speed:,.0f} a second", on_stderr=True)
