"""A dialogue: its turns, how many of them the model still reads, and the file that it is saved in."""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from inference.dialogue_row import messages_row
from training.common.errors import UserError
from training.data.reader import read_rows
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode_turns
from training.text.turns import ToolUse
from training.text.written import write_conversations

# When the oldest turns have to be left out, enough are that the prompt takes at most this share of its room.
# The next turns then fit too; otherwise the model would have to read the whole prompt again for each of them.
USED_AFTER_LEAVING = 0.75


class Prompt(NamedTuple):
    """A conversation whose last turn waits for its answer, and its input_ids, those of `encode_prompt`."""

    conversation: Conversation
    input_ids: list[int]


class Dialogue:
    """The turns of a dialogue so far.

    turns: all turns, each with its answer. left_out: how many of the oldest the model no longer reads. tools:
    the declarations of the tools that the model may call, as `calls.declaration` writes them.
    """

    def __init__(self, system: str = "", turns: tuple[Turn, ...] = (), tools: tuple[str, ...] = ()) -> None:
        self.system, self.turns, self.tools, self.left_out = system, turns, tools, 0
        self._encoded: dict[Conversation, list[int]] = {}

    def prompt(
        self,
        human: str,
        tokenizer: PreTrainedTokenizerFast,
        room: int,
        *,
        tool_uses: tuple[ToolUse, ...] = (),
    ) -> Prompt:
        """What the model reads to answer `human`: at most `room` tokens, without the oldest turns if need be.

        tokenizer: the same one for all prompts of a dialogue; it reads each turn once. tool_uses: the calls
        that were made to answer `human`. Raises UserError where these alone are longer than `room`.
        """
        last = Turn(human, tool_uses=tool_uses)
        opening, *turns = self._ids((*self.turns[self.left_out :], last), tokenizer)
        lengths = [len(ids) for ids in turns]
        tokens, leaving = len(opening) + sum(lengths), 0
        if tokens > room:
            while tokens > USED_AFTER_LEAVING * room and leaving < len(turns) - 1:
                tokens -= lengths[leaving]
                leaving += 1
            if tokens > room:
                raise UserError(
                    f"too long: {tokens:,} tokens, and there is room for {room:,}; say it in parts"
                )
        self.left_out += leaving
        conversation = Conversation((*self.turns[self.left_out :], last), self.system, self.tools)
        return Prompt(conversation, list(itertools.chain(opening, *turns[leaving:])))

    def _ids(self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
        """The ids of the system text, and of each of `turns`. Each is tokenized once.

        The parts of a conversation begin with control tokens, so that its ids are those of its parts, joined.
        """
        system, intro = Conversation((), self.system, self.tools), Conversation(())
        single_turns = [Conversation((turn,)) for turn in turns]
        new = [part for part in dict.fromkeys((system, intro, *single_turns)) if part not in self._encoded]
        for part, encoded in zip(new, encode_turns(new, tokenizer), strict=True):
            self._encoded[part] = encoded.input_ids
        before = len(self._encoded[intro])
        return [self._encoded[system], *(self._encoded[part][before:] for part in single_turns)]

    def add(self, turn: Turn) -> None:
        self.turns = (*self.turns, turn)

    def take_back(self) -> Turn:
        """Remove the last turn, and return it."""
        last = self.turns[-1]
        self.go_on_from(self.turns[:-1])
        return last

    def go_on_from(self, turns: tuple[Turn, ...]) -> None:
        """Replace the turns, some of which may have been taken back or changed.

        Turns that left stay away as long as the model still reads one that came after them; otherwise all may
        return.
        """
        self.turns, self.left_out = turns, self.left_out if self.left_out < len(turns) else 0

    def fits(
        self, human: str, tokenizer: PreTrainedTokenizerFast, room: int, tool_uses: tuple[ToolUse, ...]
    ) -> bool:
        """Whether there is a `prompt` for these, if need be without all the turns before."""
        return sum(map(len, self._ids([Turn(human, tool_uses=tool_uses)], tokenizer))) <= room

    def save(self, path: Path) -> int:
        """Write the dialogue as a row of the multi-round format, to train on or to go on with.

        With tools, it is a row of chat messages. Returns how many calls no row can hold (`messages_row`).
        Raises UserError where the file is there already or cannot be written.
        """
        conversation = Conversation(self.turns, self.system, self.tools)
        row, left_out = (
            messages_row(conversation) if conversation.has_tools else (write_conversations(conversation), 0)
        )
        try:
            with open(os.path.expanduser(path), "x", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise UserError(f"{path}: is there already; name another file") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        return left_out


def load_dialogue(path: Path) -> tuple[Dialogue, Turn | None]:
    """(the dialogue, the turn that waits for its answer, if any) of a file with one row.

    The row may have any format that training reads. Raises UserError with the place of what is wrong.
    """
    rows = list(read_rows(os.path.expanduser(str(path))))
    if len(rows) != 1:
        raise UserError(f"{path}: {len(rows):,} rows; a dialogue is a file with one")
    [(place, row)] = rows
    try:
        conversation = from_row(row)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    *earlier, last = conversation.turns
    if last.yayi is not None:
        return Dialogue(conversation.system, conversation.turns, conversation.tools), None
    uses = last.tool_uses[:-1] if last.ends_with_calls else last.tool_uses  # calls without results come anew
    return Dialogue(conversation.system, tuple(earlier), conversation.tools), replace(last, tool_uses=uses)
