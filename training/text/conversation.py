"""Where a row of any known format becomes a Conversation; the table of the formats is in `formats.py`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from training.common.options import Learn
from training.text.formats import read_columns, recognise
from training.text.keys import FEEDBACK, Keys, kind_of
from training.text.turns import Conversation, Turn

__all__ = ["Conversation", "LeftOut", "ReadRow", "Turn", "domain_of", "from_row", "read_row"]

# The prefix by which the original's data name the domain of an instruction.
DOMAIN_PREFIX = re.compile(r"\s*【([^【】\n]{1,30})】")


class LeftOut(ValueError):
    """Why training leaves out a row that is no mistake: feedback that calls its answer a bad one."""


class ReadRow(NamedTuple):
    """A row as its format reads it.

    row_format: the format's name. no_answer: the error where the last answer is wanted and missing.
    is_dialogue: whether the row is a list of messages. not_learnt, harmless: the names of keys that have
    content and are not read. refusal: why the answer must not be learnt, or "". other_system: whether the row
    has a second system text, which a system message has replaced. broken_end, broken_answer: what is wrong
    after the last answer, and with it, or "". is_bad_feedback: whether a person who talked to
    the model called its answer a bad one.
    """

    conversation: Conversation
    row_format: str
    no_answer: str
    is_dialogue: bool
    not_learnt: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    refusal: str = ""
    other_system: bool = False
    broken_end: str = ""
    broken_answer: str = ""
    is_bad_feedback: bool = False

    @property
    def ends_with_human(self) -> bool:
        """Whether a dialogue has answers, and the human has the last word."""
        return self._lacks_last_answer and not self.conversation.turns[-1].tool_uses

    @property
    def ends_with_results(self) -> bool:
        """Whether a dialogue has answers, and the last word is what a tool returned."""
        return self._lacks_last_answer and bool(self.conversation.turns[-1].tool_uses)

    @property
    def _lacks_last_answer(self) -> bool:
        return self.is_dialogue and self.conversation.is_prompt and len(self.conversation.turns) > 1

    def as_it_stands(self) -> Conversation:
        """The whole conversation. Raises ValueError where the human has the last word twice, and where the
        last answer cannot be read.
        """
        if self.broken_end or self.broken_answer:
            raise ValueError(self.broken_end or self.broken_answer)
        return self.conversation

    def as_prompt(self) -> Conversation:
        """The conversation without its last answer, whatever that is.

        Raises ValueError where the human has the last word twice.
        """
        if self.broken_end:
            raise ValueError(self.broken_end)
        *earlier, last = self.conversation.turns
        uses = last.tool_uses[:-1] if last.ends_with_calls else last.tool_uses
        return replace(self.conversation, turns=(*earlier, Turn(last.human, tool_uses=uses)))

    def to_learn(self, learn: Learn = "all") -> Conversation:
        """What training sees of the row, each turn with its answer: a last turn without one is left off.

        learn: "last" makes context of the earlier answers. Raises ValueError where no answer is to be learnt;
        it is LeftOut where that is no mistake.
        """
        if self.is_bad_feedback:
            raise LeftOut(self.refusal)
        if self.refusal or self.broken_answer:
            raise ValueError(self.refusal or self.broken_answer)
        conversation = self.conversation
        if self._lacks_last_answer:
            conversation = replace(conversation, turns=conversation.turns[:-1])
        if conversation.is_prompt:
            raise ValueError(self.no_answer)
        if learn == "last":
            *earlier, last = conversation.turns
            turns = (*(turn.as_context() for turn in earlier), last.with_earlier_as_context())
            conversation = replace(conversation, turns=turns)
        if all(is_context for turn in conversation.turns for _, is_context in turn.answers()):
            raise ValueError("no answer of the row is to be learnt")
        return conversation


def from_row(row: dict[str, Any], *, answered: bool = False) -> Conversation:
    """The conversation of a row in any of the formats. A key that is null or blank counts as absent.

    The last turn may lack its answer, which makes the row a prompt. With `answered`, the conversation is what
    training sees: a last message of the human is left off, and there is an answer to learn.
    Raises ValueError naming the field at fault.
    """
    read = read_row(row)
    return read.to_learn() if answered else read.as_it_stands()


def read_row(row: Any, columns: Mapping[str, str] | None = None) -> ReadRow:
    """The conversation of a row in any of the formats, and what was not read of the row.

    columns: which column holds which part, whatever the row's other columns are called. Raises ValueError
    naming the field at fault.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is {kind_of(row)}, not an object")
    try:
        return _read_keys(Keys(row), columns)
    except RecursionError:
        raise ValueError("lists in lists, too deep to be read") from None


def _read_keys(keys: Keys, columns: Mapping[str, str] | None) -> ReadRow:
    if columns:
        name, reading = ", ".join(columns.values()), read_columns(keys, columns)
    else:
        row_format = recognise(keys)
        name, reading = row_format.name, row_format.read(keys)
    not_learnt, harmless, refusal = keys.rest()
    for message in reading.messages:
        rest = message.rest()
        not_learnt += rest.not_learnt
        harmless += rest.harmless
        refusal = refusal or rest.refusal
    return ReadRow(
        reading.conversation,
        name,
        reading.no_answer,
        reading.is_dialogue,
        tuple(dict.fromkeys(not_learnt)),
        tuple(dict.fromkeys(harmless)),
        refusal,
        reading.other_system,
        reading.broken_end,
        reading.broken_answer,
        keys.peek("source") == FEEDBACK and keys.peek("label") is False,
    )


def domain_of(conversation: Conversation) -> str:
    """The domain in 【】 at the start of the first instruction, or "" if there is none."""
    prefix = DOMAIN_PREFIX.match(conversation.turns[0].human)
    return prefix[1] if prefix else ""
