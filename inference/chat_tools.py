"""Tools in the terminal chat: a person is asked about each call, and sees what it returned."""

import itertools
from collections.abc import Iterator

from inference.screen import Screen
from inference.terminal import Inputs
from inference.tool_loop import shown_call
from inference.tool_process import ToolFile
from training.text.calls import Call, call_text, read_call
from training.text.turns import ToolUse

YES, NO, ALWAYS = "y", "n", "always"

# How much of a result is shown, in characters; the model reads the whole.
LONGEST_SHOWN = 400


class ChatTools:
    """The tools of a chat, and which of their calls are run."""

    def __init__(self, file: ToolFile, max_calls: int, screen: Screen, inputs: Inputs | None = None) -> None:
        """max_calls: how many calls a question may have. inputs: where a person is asked about each; where
        there is none, all are run.
        """
        self.file, self.max_calls = file, max_calls
        self._screen, self._inputs = screen, inputs
        self._always: set[str] = set()

    def allow(self, call: Call) -> bool:
        """Show a call, and say whether it is run: a person may allow it, or all calls of that tool."""
        self._screen.note(shown_call(call_text(*call)))
        if self._inputs is None or call.name in self._always:
            return True
        word = self._inputs.choose(f"Run it? {YES}/{NO}/{ALWAYS}: ", (YES, NO, ALWAYS))
        if word == ALWAYS:
            self._always.add(call.name)
        return word in (YES, ALWAYS)

    def show_results(self, use: ToolUse) -> None:
        for call, result in zip(use.calls, use.results, strict=True):
            self._screen.note(f"{name_in(call)}: {in_one_line(result)}", "dim")

    def show(self, use: ToolUse) -> None:
        """Show calls and results of an earlier chat."""
        for call in use.calls:
            self._screen.note(in_one_line(shown_call(call)))
        self.show_results(use)


def name_in(call: str) -> str:
    """The name of the tool that is called, or all of what is no call."""
    try:
        return read_call(call).name
    except ValueError:
        return in_one_line(call)


def in_one_line(text: str) -> str:
    """A text for a person, who sees its beginning."""
    rest = f"... ({len(text):,} characters)" if len(text) > LONGEST_SHOWN else ""
    return text[:LONGEST_SHOWN].replace("\n", "\\n") + rest


def unless_empty(pieces: Iterator[str]) -> Iterator[str] | None:
    """The pieces, or None where there is none."""
    first = next(pieces, None)
    return None if first is None else itertools.chain([first], pieces)
