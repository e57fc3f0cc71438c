"""Where a row of any known format becomes a Conversation; the table of the formats is in `formats.py`."""

import re
from typing import Any

from training.text.formats import answered_keys, kind_of, recognise
from training.text.turns import Conversation, Turn

__all__ = ["Conversation", "Turn", "domain_of", "format_of", "from_row", "other_keys"]

# The prefix by which the original's data name the domain of an instruction.
DOMAIN_PREFIX = re.compile(r"\s*【([^【】\n]{1,30})】")


def from_row(row: dict[str, Any], *, answered: bool = False, prompts: bool = False) -> Conversation:
    """The conversation of a row in any of the formats. A key whose value is null counts as absent.

    The last turn may lack its answer, which makes the row a prompt, unless `answered` asks for it. `prompts`
    also admits the formats that have no place for an answer.
    Raises ValueError naming the field at fault.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a row is {kind_of(row)}, not an object")
    row_format = recognise(row, prompts=prompts)
    conversation = row_format.read(row)
    if answered and conversation.is_prompt:
        raise ValueError(row_format.no_answer)
    return conversation


def format_of(row: dict[str, Any]) -> str:
    """The name of the format of a row that `from_row` takes."""
    return recognise(row).name


def other_keys(row: dict[str, Any]) -> set[str]:
    """The keys that a Conversation has no place for, of a row that `from_row` takes and of its messages."""
    row_format = recognise(row)
    known = {*answered_keys(), *row_format.fields}
    found = {f'"{key}"' for key, value in row.items() if key not in known and value is not None}
    if row_format.message_fields:
        for message in row[row_format.key]:
            found |= {
                f'"{row_format.key}"[…]."{key}"'
                for key, value in message.items()
                if key not in row_format.message_fields and value is not None
            }
    return found


def domain_of(conversation: Conversation) -> str:
    """The domain in 【】 at the start of the first instruction, or "" if there is none."""
    prefix = DOMAIN_PREFIX.match(conversation.turns[0].human)
    return prefix[1] if prefix else ""
