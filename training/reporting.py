"""What a run says: lines on stdout, from rank 0 alone."""

import os


def say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)
