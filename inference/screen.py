"""What a chat prints: on a terminal colours and Markdown, and in a pipe the texts alone.

Answers and what commands show go to stdout, notes to stderr. No text can steer a terminal: there, control
characters are shown as escapes. A file or a pipe gets an answer as the model gave it.
"""

import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from inference.markdown import show_markdown
from training.common.console import unless_unread, visible

# The characters beside those of a text that Markdown is shown with.
ORNAMENTS = "•▌─"


class Screen:
    """Where a chat prints.

    has_markdown: whether it does so in colours, with Markdown made readable. is_unread: whether stdout no
    longer takes what is printed, as when `| head -3` has what it wants.
    """

    def __init__(self) -> None:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        is_able = os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and _can_show(ORNAMENTS)
        self.has_markdown = is_terminal and is_able
        self.is_unread = False

    def line(self, text: str) -> None:
        """Print a text of one or more lines."""
        self._print(self._for_stdout(text) + "\n")

    def labelled(self, label: str, text: str) -> None:
        """Print a text behind the name of who says it."""
        if self.has_markdown:
            Console().print(Text.assemble((label, "bold"), visible(text)), soft_wrap=True)
        else:
            self.line(label + text)

    def note(self, text: str, style: str = "yellow") -> None:
        """Print a remark of the chat itself."""
        if self.has_markdown:
            Console(stderr=True).print(Text(visible(text), style), soft_wrap=True)
            return
        with unless_unread(sys.stderr):
            print(f"[{visible(text)}]", file=sys.stderr, flush=True)

    def answer(self, label: str, pieces: Iterable[str]) -> None:
        """Print an answer as its pieces come, behind the name of who gives it, if that is not empty."""
        if self.has_markdown and label:
            console = Console()
            console.print(Text(label.rstrip(), "bold cyan"))
            show_markdown(console, pieces)
            return
        self._print(label)
        for piece in pieces:
            self._print(self._for_stdout(piece))
        self._print("\n")

    def _for_stdout(self, text: str) -> str:
        return visible(text) if sys.stdout.isatty() else text

    def _print(self, text: str) -> None:
        with unless_unread(sys.stdout):
            print(text, end="", flush=True)
            return
        self.is_unread = True


def _can_show(characters: str) -> bool:
    try:
        characters.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True
