"""Conversation and Turn: every row becomes one, and the code after the reader knows no other form."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """What the human says, and what YaYi answers; None where the answer is still to come.

    is_context: the answer is only read; none of its tokens are supervised.
    """

    human: str
    yayi: str | None = None
    is_context: bool = False


@dataclass(frozen=True)
class Conversation:
    """One or more turns. Only the last may lack its answer; an empty system text means the intro."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def is_prompt(self) -> bool:
        """Whether the last answer is still to come."""
        return self.turns[-1].yayi is None
