"""What a person types: in a terminal with editing, several lines and a history; from a pipe line by line."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings


def typed(label: str) -> Iterator[str]:
    """Each text that was entered, until Ctrl-D or the end of the input. Ctrl-C discards a line."""
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
    """Enter sends; Alt-Enter starts a new line, and what is pasted keeps its lines."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(label, multiline=True, key_bindings=keys, history=_history()).prompt


def _history() -> History:
    """In XDG_STATE_HOME, or ~/.local/state, for its owner's eyes only; where that cannot be, of this chat."""
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
    """Ctrl-C calls `stop`, and interrupts nothing."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
