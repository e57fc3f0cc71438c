"""Conversation and Turn: every row becomes one, and the code after the reader knows no other form."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.text.calls import answer_with_calls


@dataclass(frozen=True)
class ToolUse:
    """An answer that calls tools, and what they return.

    calls: the JSON text of each call, as `calls.call_text` writes it. results: what each call returned, in
    the order of the calls; none where the conversation ends with the calls. text: what YaYi says before the
    first call. is_context: the answer is only read; none of its tokens are supervised.
    """

    calls: tuple[str, ...]
    results: tuple[str, ...] = ()
    text: str = ""
    is_context: bool = False


@dataclass(frozen=True)
class Turn:
    """What the human says, which tools YaYi calls for it, and what it answers; None while that is to come.

    is_context: the answer `yayi` is only read; none of its tokens are supervised.
    """

    human: str
    yayi: str | None = None
    is_context: bool = False
    tool_uses: tuple[ToolUse, ...] = ()

    @property
    def ends_with_calls(self) -> bool:
        """Whether the last thing said is a call, whose result is not there."""
        return self.yayi is None and bool(self.tool_uses) and not self.tool_uses[-1].results

    def answers(self) -> Iterator[tuple[str, bool]]:
        """The text of each answer of YaYi, those that call tools included, and whether it is only read."""
        for use in self.tool_uses:
            yield answer_with_calls(use.text, use.calls), use.is_context
        if self.yayi is not None:
            yield self.yayi, self.is_context

    def as_context(self) -> "Turn":
        """The turn with none of its answers supervised."""
        uses = tuple(replace(use, is_context=True) for use in self.tool_uses)
        return replace(self, is_context=self.yayi is not None, tool_uses=uses)

    def with_earlier_as_context(self) -> "Turn":
        """The turn with no answer supervised but the last, which may be one that calls tools."""
        if self.ends_with_calls:
            return replace(self, tool_uses=(*self.as_context().tool_uses[:-1], self.tool_uses[-1]))
        return replace(self, tool_uses=self.as_context().tool_uses)

    def texts(self) -> Iterator[str]:
        """Every text of the turn, in order."""
        yield self.human
        for use in self.tool_uses:
            yield from (use.text, *use.calls, *use.results)
        if self.yayi is not None:
            yield self.yayi


@dataclass(frozen=True)
class Conversation:
    """One or more turns. Only the last may lack its answer; an empty system text means the intro.

    tools: the JSON text of each tool's declaration, as `calls.declaration` writes it.
    """

    turns: tuple[Turn, ...]
    system: str = ""
    tools: tuple[str, ...] = ()

    @property
    def is_prompt(self) -> bool:
        """Whether an answer is still to come: to the human, or after the results of tools."""
        return self.turns[-1].yayi is None and not self.turns[-1].ends_with_calls

    @property
    def has_tools(self) -> bool:
        """Whether its text needs the control token of tools: tools are declared, called, or have returned."""
        return bool(self.tools) or any(turn.tool_uses for turn in self.turns)

    def texts(self) -> Iterator[str]:
        """Every text that is in it, in order; none for the intro."""
        yield from (self.system, *self.tools)
        for turn in self.turns:
            yield from turn.texts()
