"""How a command ends: one line and status 2 for a user's mistake, a traceback for a fault of ours."""

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import click

from training.common.console import show_any_text, unless_unread, visible

# Seconds that a rank other than 0 waits for the launcher to end it before it prints its own error.
OTHER_RANK_PATIENCE_S = 20


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, where, and what to do.

    `details` are further lines, printed before it: where there are many mistakes, one for each.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = details


def first_line(error: Exception) -> str:
    """What a library's error says first, for use within a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_command(command: click.Command) -> NoReturn:
    """Run `command` on the arguments of this process, and exit."""
    from training.common.ranks import settle_ranks  # which raises UserError

    show_any_text()
    try:
        settle_ranks()
        status = command.main(standalone_mode=False)
        with unless_unread(sys.stdout):
            print(end="", flush=True)
        sys.exit(status)
    except UserError as error:
        end_with(*error.details, str(error))
    except click.ClickException as error:
        end_with(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)


def end_with(*messages: str) -> NoReturn:
    """Print each message as one line on stderr, from rank 0 alone, and exit with status 2.

    All ranks of a run find the same mistake at about the same time. The launcher kills every rank as soon as
    one has failed, so the others give rank 0 time to print; a rank that is still there after
    OTHER_RANK_PATIENCE_S found something that rank 0 did not (a file missing on its node, say).
    """
    rank = int(os.environ.get("RANK", "0"))
    who = f"rank {rank}: " if rank else ""
    if rank:
        time.sleep(OTHER_RANK_PATIENCE_S)
    lines = [f"error: {who}{visible(' '.join(message.split()))}\n" for message in messages]
    for stream, text in ((sys.stdout, ""), (sys.stderr, "".join(lines))):
        with unless_unread(stream):
            print(text, end="", file=stream, flush=True)
    sys.exit(2)
