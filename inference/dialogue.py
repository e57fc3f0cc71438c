"""A dialogue that goes on: its turns, what of them the model still reads, and the file it is kept in."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from training.common.errors import UserError
from training.data.reader import read_rows
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode_prompt

# Of the room for a prompt, what is used when oldest turns have left: so the next turns fit as well, and the
# model need not read all that is left again for each of them.
USED_AFTER_LEAVING = 0.75


class Dialogue:
    """turns: all of them, answered. left_out: how many of the oldest the model no longer reads."""

    def __init__(self, system: str = "", turns: tuple[Turn, ...] = ()) -> None:
        self.system, self.turns, self.left_out = system, turns, 0

    def prompt(self, human: str, tokenizer: PreTrainedTokenizerFast, room: int) -> Conversation:
        """What the model reads to answer `human`: at most `room` tokens, without the oldest turns if need be.

        Raises UserError where `human` alone is longer.
        """
        conversation = self._after_leaving(human)
        if len(encode_prompt(conversation, tokenizer)) <= room:
            return conversation
        first_left_out, wanted = self.left_out, USED_AFTER_LEAVING * room
        while (tokens := len(encode_prompt(conversation, tokenizer))) > wanted:
            if self.left_out == len(self.turns):
                break
            self.left_out += 1
            conversation = self._after_leaving(human)
        if tokens > room:
            self.left_out = first_left_out
            raise UserError(f"too long: {tokens:,} tokens, and there is room for {room:,}; say it in parts")
        return conversation

    def add(self, turn: Turn) -> None:
        self.turns = (*self.turns, turn)

    def take_back(self) -> Turn:
        """The last turn, which is gone then."""
        *before, last = self.turns
        self.turns = tuple(before)
        self.left_out = min(self.left_out, len(before))
        return last

    def save(self, path: Path) -> None:
        """As a row of the multi-round format, to learn from or to go on with. Raises UserError."""
        speakers = [("human", turn.human, "yayi", turn.yayi) for turn in self.turns]
        row = {
            "system": self.system,
            "conversations": [
                {"from": who, "value": text}
                for human, said, yayi, answered in speakers
                for who, text in ((human, said), (yayi, answered))
            ],
        }
        try:
            with path.expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise UserError(f"{path}: is there already; name another file") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def _after_leaving(self, human: str) -> Conversation:
        return Conversation((*self.turns[self.left_out :], Turn(human)), self.system)


def load_dialogue(path: Path) -> tuple[Dialogue, str | None]:
    """(the dialogue of the only row in a file, in any format that training reads; what waits for an answer).

    Raises UserError with the place of what is wrong.
    """
    rows = list(read_rows(str(path.expanduser())))
    if len(rows) != 1:
        raise UserError(f"{path}: {len(rows):,} rows; a dialogue is a file with one")
    [(place, row)] = rows
    try:
        conversation = from_row(row)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    if conversation.is_prompt:
        *answered, last = conversation.turns
        return Dialogue(conversation.system, tuple(answered)), last.human
    return Dialogue(conversation.system, conversation.turns), None
