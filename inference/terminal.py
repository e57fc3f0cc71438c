"""Read what a person types: in a terminal with an editor and a history, from a pipe line by line."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import Output, create_output

# What begins and ends a text of many lines, in which Enter starts a line.
QUOTES = '"""'


class Inputs:
    """What a person enters. has_editor: whether at a terminal; otherwise each line of stdin is a text."""

    def __init__(self, label: str, completer: Completer | None = None) -> None:
        """label: stands before what is typed. completer: what Tab offers."""
        self.has_editor = sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())
        self._label: StyleAndTextTuples = [("bold ansigreen", label)]
        self._session = _editor(completer) if self.has_editor else None
        if not self.has_editor and isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes in another encoding arrive as halves of surrogate pairs, and end nothing.
            sys.stdin.reconfigure(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        """Each text, until Ctrl-D or the end of the input. Ctrl-C discards what was typed."""
        while True:
            try:
                yield self._session.prompt(self._label) if self._session else input("")
            except EOFError:
                return
            except KeyboardInterrupt:
                continue

    def edit(self, label: str, text: str) -> str:
        """What a person makes of a text, which is there to be changed.

        Raises KeyboardInterrupt at Ctrl-C, and EOFError at Ctrl-D in a text that is empty.
        """
        assert self._session
        return self._session.prompt([("bold ansicyan", label)], default=text)

    def choose(self, label: str, words: Sequence[str]) -> str:
        """The one of these words that a person types, or "" for Ctrl-C or Ctrl-D."""
        session: PromptSession[str] = PromptSession(output=_output())
        while True:
            try:
                word = session.prompt([("bold ansiyellow", label)]).strip().lower()
            except (EOFError, KeyboardInterrupt):
                return ""
            if word in words:
                return word


class CommandCompleter(Completer):
    """What Tab offers in a line that begins with /: the commands, and what a command may be followed by."""

    def __init__(self, commands: Sequence[str], arguments: Mapping[str, Completer]) -> None:
        self._commands, self._arguments = commands, arguments

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, argument = text[1:].partition(" ")
        if not text.startswith("/"):
            return
        if space and name in self._arguments:
            yield from self._arguments[name].get_completions(Document(argument), complete_event)
        elif not space:
            for command in sorted(self._commands):
                if command.startswith(name):
                    yield Completion(f"/{command}", start_position=-len(text))


def _editor(completer: Completer | None) -> PromptSession[str]:
    """An editor in which Enter sends, Alt-Enter starts a line, and a paste keeps its lines.

    In a text that begins with QUOTES, Enter starts a line until they are there again.
    """
    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        text = event.current_buffer.text
        if text.lstrip().startswith(QUOTES) and text.count(QUOTES) % 2:
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        multiline=True,
        key_bindings=keys,
        history=_history(),
        completer=completer,
        complete_while_typing=False,
        output=_output(),
    )


def _output() -> Output | None:
    """Where an editor is shown: on the terminal, also where stdout is a file or a pipe."""
    return None if sys.stdout.isatty() else create_output(always_prefer_tty=True)


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
