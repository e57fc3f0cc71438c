"""Read what a person types: in a terminal with an editor and a history, from a pipe line by line."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings


def read_inputs(label: str) -> Iterator[str]:
    """Each text that a person enters, until Ctrl-D or the end of the input. Ctrl-C discards a line."""
    read = _editor(label) if sys.stdin.isatty() else lambda: input("")
    while True:
        try:
            text = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            continue
        yield text


def _editor(label: str) -> Callable[[], str]:
    """A function that reads a text. Enter sends it, Alt-Enter starts a line, a paste keeps its lines."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(label, multiline=True, key_bindings=keys, history=_history()).prompt


def _history() -> History:
    """The history of all chats, in XDG_STATE_HOME or ~/.local/state, which its owner alone may read.

    Where that cannot be written, only this chat's inputs are remembered.
    """
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = state / "yayi" / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)


@contextlib.contextmanager
def on_ctrl_c(stop: Callable[[], None]) -> Iterator[None]:
    """In the block, Ctrl-C calls `stop` and raises no KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
